from __future__ import annotations

import pytest
import torch

from intermoe.train.draws import ItemDraws

CPU = torch.device("cpu")


def test_an_item_draws_the_same_in_any_batch_and_padding() -> None:
    together, alone = ItemDraws((3, 1), [4, 5, 6], CPU), ItemDraws((3, 1), [5], CPU)
    assert torch.equal(together.uniform(2)[1], alone.uniform(2)[0])
    padded, exact = together.normal([9, 5, 7], 2, 3), alone.normal([5], 2, 3)
    assert padded.shape == (3, 9, 2, 3)
    assert torch.equal(padded[1, :5], exact[0])
    assert not padded[1, 5:].any()
    padded, exact = together.uniform_over([9, 5, 7], 2, 3), alone.uniform_over([5], 2, 3)
    assert padded.shape == (3, 9, 2, 3)
    assert padded[1, :5].unique().numel() == 30, "each is drawn"
    assert torch.equal(padded[1, :5], exact[0])
    assert not padded[1, 5:].any()
    assert torch.equal(together.uniform(2)[1], alone.uniform(2)[0])
    assert not torch.equal(ItemDraws((3, 2), [5], CPU).uniform(), ItemDraws((3, 1), [5], CPU).uniform())


def test_lengths_are_of_as_many_items() -> None:
    draws = ItemDraws((3, 1), [4, 5], CPU)
    for draw in (draws.uniform_over, draws.normal):
        for frames in ([9], [9, 5, 7]):
            with pytest.raises(ValueError, match="argument"):
                draw(frames, 2)


def test_on_the_host_the_same_numbers_go_on() -> None:
    """The numbers of one source, whichever of both is asked; the place of the tensors alone is another."""
    plain, both = ItemDraws((3, 1), [4, 5], CPU), ItemDraws((3, 1), [4, 5], CPU)
    both.device = torch.device("meta")  # stands in for one that is not the host
    host = both.on_host()
    assert (host.device, both.device.type) == (CPU, "meta")
    assert torch.equal(host.uniform(2), plain.uniform(2))
    assert both.uniform(2).is_meta
    plain.uniform(2)
    assert torch.equal(host.normal(3, 2), plain.normal(3, 2))


def test_numbers_are_distributed_as_they_should_be() -> None:
    draws = ItemDraws((0,), range(2000), CPU)
    assert abs(draws.uniform().mean() - 0.5) < 0.03
    normal = draws.normal(1, 3)
    assert normal.shape == (2000, 1, 3)
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05


def test_an_item_has_the_same_numbers_on_the_host_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single numbers of a device's items are drawn on the host, by generators of the same seeds."""
    seeds: list[tuple[str, int]] = []

    class Generator:
        def __init__(self, device: torch.device = CPU) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> Generator:
            seeds.append((self.device.type, seed))
            return self

    monkeypatch.setattr(torch, "Generator", Generator)
    ItemDraws((3, 1), [0, 1, 2, 3, 4], CPU)
    expected, numbers = [seed for _, seed in seeds], [4, 2]
    assert len(set(expected)) == 5
    seeds.clear()
    ItemDraws((3, 1), numbers, torch.device("cuda"))
    assert seeds == [(device, expected[n]) for device in ("cuda", "cpu") for n in numbers]
