"""The order of the data as a function of the batch's number."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.train.stream import Draws, StreamSampler


@pytest.mark.parametrize(
    ("length", "batch_size"),
    [
        (10, 5),  # batches end with the epoch
        (10, 4),  # batches cross epochs
        (3, 8),  # a batch holds several epochs
        (1, 1),
    ],
)
def test_every_epoch_holds_every_item_once(length: int, batch_size: int) -> None:
    groups = 30  # whole epochs of all these lengths
    batches = list(StreamSampler([7] * length, batch_size, range(groups * StreamSampler.GROUP), seed=0))
    assert all(len(batch) == batch_size for batch in batches)
    stream = sorted((epoch, index) for batch in batches for index, epoch in batch)
    assert stream == [divmod(position, length) for position in range(groups * StreamSampler.GROUP * batch_size)]


def test_a_batch_depends_on_its_number_alone() -> None:
    lengths = [5, 9, 5, 9, 1, 2, 3]
    whole = list(StreamSampler(lengths, 3, range(20), seed=4))
    assert list(StreamSampler(lengths, 3, range(11, 20), seed=4)) == whole[11:], "resumed"
    assert list(StreamSampler(lengths, 3, range(1, 20, 2), seed=4)) == whole[1::2], "second of two ranks"
    assert list(StreamSampler(lengths, 3, range(20), seed=5)) != whole


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    """Of items of one length, in batches of one epoch each, nothing but the order of the stream is left."""
    orders = []
    for seed in (4, 5):
        batches = StreamSampler([7] * 10, 10, range(StreamSampler.GROUP), seed=seed)
        orders += [tuple(index for index, _ in batch) for batch in batches]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 2 * StreamSampler.GROUP


def test_items_of_similar_length_come_together() -> None:
    lengths = [100] * 90 + [300] * 10
    batches = list(StreamSampler(lengths, 8, range(40 * StreamSampler.GROUP), seed=0))
    computed = sum(8 * max(lengths[index] for index, _ in batch) for batch in batches)
    needed = sum(lengths[index] for batch in batches for index, _ in batch)
    assert computed < 1.15 * needed, "almost nothing is padding; batches by chance would compute 1.9 times as much"
    places = [n % StreamSampler.GROUP for n, batch in enumerate(batches) if any(lengths[i] == 300 for i, _ in batch)]
    assert set(places) == set(range(StreamSampler.GROUP)), "long batches come at any place of their group"


def test_a_step_has_the_same_items_however_it_is_shared() -> None:
    lengths = [5, 9, 5, 9, 1, 2, 3]
    whole = list(StreamSampler(lengths, 6, range(20), seed=4))
    parts = list(StreamSampler(lengths, 2, range(60), seed=4, parts=3))
    assert [a + b + c for a, b, c in zip(parts[::3], parts[1::3], parts[2::3], strict=True)] == whole


def test_shares_make_the_mean_over_all_frames_of_a_step() -> None:
    lengths = [8, 40, 16, 24, 12, 60, 20]
    values = np.random.default_rng(0).normal(size=len(lengths))  # of all frames of an item
    sampler = StreamSampler(lengths, 2, range(3 * 40), seed=1, parts=3)
    batches, shares = list(sampler), list(sampler.shares())
    assert np.mean(shares) == pytest.approx(1)

    def mean(draws: list[tuple[int, int]]) -> float:
        return float(np.average([values[i] for i, _ in draws], weights=[lengths[i] // 4 for i, _ in draws]))

    for step in range(0, len(batches), 3):
        parts = slice(step, step + 3)
        shared = np.mean([share * mean(batch) for batch, share in zip(batches[parts], shares[parts], strict=True)])
        assert shared == pytest.approx(mean([draw for batch in batches[parts] for draw in batch]))


def test_a_dataset_is_drawn_by_index_and_epoch() -> None:
    class Items:
        def draw(self, index: int, epoch: int) -> dict[str, int]:
            return {"index": index, "epoch": epoch}

    assert Draws(Items())[3, 7] == {"index": 3, "epoch": 7}  # type: ignore[arg-type]


def test_a_batch_counts_by_the_latent_frames_that_its_items_have() -> None:
    """Four frames are one; what is left of them is none: 7, 20 and 35 frames are 1, 5 and 8."""
    latents = (1, 5, 8)
    sampler = StreamSampler((7, 20, 35), 2, range(16), 0, parts=2)
    batches, shares = list(sampler), list(sampler.shares())
    own = [sum(latents[index] for index, _ in batch) for batch in batches]
    expected = [2 * one / sum(own[number // 2 * 2 : number // 2 * 2 + 2]) for number, one in enumerate(own)]
    assert shares == pytest.approx(expected)
    assert len(set(shares)) > 1
