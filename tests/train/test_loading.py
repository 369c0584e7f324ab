"""Batches of several processes: those of one, whoever keeps them for however long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from intermoe.data.batching import collate
from intermoe.data.items import MotionItem
from intermoe.train import loading
from intermoe.train.loading import SharedMemory, batches
from intermoe.train.stream import StreamSampler

LENGTHS = [4, 9, 6, 5, 8, 3, 7]  # batches of several shapes, one of them the largest that there can be


class Numbered:
    """Every number of a motion says whose it is, of which epoch and frame."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def num_frames(self, index: int) -> int:
        return LENGTHS[index]

    def draw(self, index: int, epoch: int) -> MotionItem:
        frames = torch.arange(LENGTHS[index])[:, None].expand(-1, 3)
        motion = (1000.0 * epoch + 100 * index + frames).expand(2, -1, -1)
        return {"name": str(index), "motion": motion, "caption": f"caption {index}"}


def with_source(items: Sequence[Any]) -> dict[str, Any]:
    """Tensors of several types, an empty one, one of no axis, and what is no tensor; and where it was made."""
    batch = dict(collate(items))
    place = get_worker_info()
    return batch | {
        "whole": torch.tensor([int(item["name"]) for item in items], dtype=torch.int16),
        "half": batch["motion"].to(torch.bfloat16)[..., :1],
        "known": batch["motion"] > 0,
        "none": torch.empty(0, 3),
        "scalar": batch["motion"].sum(),
        "words": [item["caption"] for item in items],
        "process": -1 if place is None else place.id,
        "shared": batch["motion"].is_shared(),
    }


def test_batches_of_processes_are_those_of_one_and_stay() -> None:
    def drawn(workers: int) -> list[Any]:
        return list(batches(Numbered(), StreamSampler(LENGTHS, 3, range(23), seed=1), with_source, workers))

    one, several = drawn(0), drawn(2)  # all are kept: more than there are places for
    assert [batch.pop("process") for batch in several] == [number % 2 for number in range(23)]
    assert {batch.pop("process") for batch in one} == {-1}
    assert {batch.pop("shared") for batch in one} == {False}
    assert {batch.pop("shared") for batch in several} == {True}  # drawn where the parent takes it from
    assert len(one) == len(several) == 23
    assert len({batch["motion"].shape for batch in one}) > 1
    for expected, batch in zip(one, several, strict=True):
        assert batch.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, Tensor):
                assert batch[name].dtype == value.dtype
                assert batch[name].shape == value.shape
                assert torch.equal(batch[name], value), name
                assert not batch[name].is_shared()
            else:
                assert batch[name] == value, name


def with_parts(items: Sequence[Any]) -> dict[str, Any]:
    """Beside the batch, its items, which are parts of it."""
    return {**collate(items), "parts": [item["motion"] for item in items]}


def test_parts_of_a_batch_stay_too() -> None:
    several = list(batches(Numbered(), StreamSampler(LENGTHS, 3, range(23), seed=1), with_parts, 2))
    for batch in several:
        for row, length, part in zip(batch["motion"], batch["lengths"], batch["parts"], strict=True):
            assert torch.equal(part, row[:, :length])


class Worker:
    id = 0


def test_as_many_batches_lie_side_by_side_as_may_be_made_before_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ahead, and the one that the parent has asked for; the fourth lies where the first was."""
    monkeypatch.setattr("intermoe.train.loading.get_worker_info", Worker)
    kept = SharedMemory(lambda items: {"motion": torch.full((16,), float(items[0])), "name": "n"}, 1, 64)
    lying = [kept([number]) for number in range(3)]
    taken = [kept.taken(each) for each in lying]
    assert [batch["motion"].tolist() for batch in taken] == [[number] * 16 for number in (0.0, 1.0, 2.0)]
    assert all(batch["name"] == "n" for batch in taken)
    kept([3])
    assert kept.taken(lying[0])["motion"][0] == 3
    assert taken[0]["motion"][0] == 0  # its own memory


def test_a_batch_that_has_no_place_goes_the_way_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intermoe.train.loading.get_worker_info", Worker)
    kept = SharedMemory(lambda items: {"motion": torch.ones(len(items), 16)}, 1, 2 * 64)
    assert not isinstance(kept(range(2)), dict)
    too_large = kept(range(3))
    assert isinstance(too_large, dict)
    assert kept.taken(too_large) is too_large
    assert not kept.new(torch.ones(1), (3, 16)).is_shared()


def test_what_lies_in_its_place_is_not_moved_and_what_comes_after_it_lies_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("intermoe.train.loading.get_worker_info", Worker)
    kept = SharedMemory(lambda drawn: {"motion": drawn, "half": drawn[:1] / 2, "part": drawn[:, 1]}, 1, 4 * 64)
    for number in range(5):
        drawn = kept.new(torch.ones(1), (2, 16)).fill_(number)
        batch = kept.taken(kept(drawn))
        assert drawn.data_ptr() == kept.memory[0][number % 3 * 4 * 64 :].data_ptr()
        assert {name: value.unique().tolist() for name, value in batch.items()} == {
            "motion": [number],
            "half": [number / 2],
            "part": [number],
        }
    # no room behind it: torch's way, and nothing of it lies in memory that is used again
    narrow = SharedMemory(kept.collate, 1, 2 * 64)
    batch = narrow(narrow.new(torch.ones(1), (2, 16)).fill_(7))
    assert isinstance(batch, dict)
    assert not any(value.is_shared() for value in batch.values())
    narrow.collate = lambda items: {"motion": torch.ones(len(items), 16)}
    assert not isinstance(narrow(range(2)), dict)  # its place is free again


@pytest.mark.parametrize(("make", "plain"), [(collate, True), (with_parts, False)])
def test_places_are_as_large_as_the_largest_batch(make: Any, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three items of nine frames, padded to twelve: 2 persons x 12 x 3 float32, and lengths, by 64 bytes."""
    sizes: list[tuple[int, int]] = []
    loaders: list[dict[str, Any]] = []

    class Memory(SharedMemory):
        def __init__(self, collate: Any, workers: int, size: int) -> None:
            sizes.append((workers, size))
            super().__init__(collate, workers, size)

    def loader(dataset: Any, **options: Any) -> list[Any]:
        loaders.append({"dataset": dataset, **options})
        return []

    monkeypatch.setattr(loading, "SharedMemory", Memory)
    monkeypatch.setattr(loading, "DataLoader", loader)
    sampler = StreamSampler(LENGTHS, 3, range(2), seed=1)
    assert list(batches(Numbered(), sampler, make, 2)) == []
    assert sizes == [(2, 896 + 64)]  # of 864 and 24 bytes
    (given,) = loaders
    assert given["batch_sampler"] is sampler
    assert (given["num_workers"], given["prefetch_factor"]) == (2, 2)
    assert given["worker_init_fn"] is loading.end_with_parent
    assert isinstance(given["collate_fn"], Memory)
    assert given["collate_fn"].collate is make
    place = given["dataset"].new
    assert (place == given["collate_fn"].new) if plain else place is Tensor.new_empty
