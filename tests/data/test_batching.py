"""Items of different length in one batch, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from intermoe.data.batching import Gathered, collate, gather, pad_motion
from intermoe.data.items import MotionItem


def item(name: str, frames: int) -> MotionItem:
    return {"name": name, "motion": torch.full((2, frames, 3, 2), float(frames)), "caption": f"they {name}"}


@pytest.mark.parametrize(("lengths", "padded"), [((5, 3), 8), ((3, 8, 1), 8), ((3, 3), 4), ((4, 4), 4), ((8,), 8)])
def test_a_batch_is_as_long_as_its_longest_and_a_multiple_of_four(lengths: tuple[int, ...], padded: int) -> None:
    batch = collate([item(str(number), frames) for number, frames in enumerate(lengths)])
    assert batch["names"] == [str(number) for number in range(len(lengths))]
    assert batch["captions"] == [f"they {number}" for number in range(len(lengths))]
    assert (batch["lengths"].tolist(), batch["lengths"].dtype) == (list(lengths), torch.int64)
    assert batch["motion"].shape == (len(lengths), 2, padded, 3, 2)
    for motion, frames in zip(batch["motion"], lengths, strict=True):
        assert (motion[:, :frames] == frames).all()
        assert (motion[:, frames:] == 0).all()


def test_motion_is_padded_to_the_longest_alone_unless_a_multiple_is_asked_for() -> None:
    motions = [torch.ones(1, frames, 2, dtype=torch.float64) for frames in (2, 5)]
    for options, padded in (({}, 5), ({"multiple": 3}, 6), ({"multiple": 5}, 5)):
        motion, lengths = pad_motion(motions, **options)
        assert motion.shape == (2, 1, padded, 2)
        assert motion.dtype == torch.float64
        assert motion.sum().item() == 14
        assert lengths.tolist() == [2, 5]
    motion, lengths = pad_motion(motions[1:])
    assert motion.shape == (1, 1, 5, 2)
    assert lengths.tolist() == [5]


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^items: expected at least one, got none$"):
        collate([])


def test_items_are_gathered_in_memory_of_the_callers_and_padded_with_zeros() -> None:
    """Three persons, frames of (2,); memory that held something else, of which each item fills its own part."""
    items = [
        {"name": "a", "motion": torch.arange(30.0).view(3, 5, 2), "codes": 7},
        {"name": "b", "motion": -torch.arange(1.0, 13.0).view(3, 2, 2)},
    ]
    asked: list[tuple[torch.Tensor, tuple[int, ...]]] = []
    memory = torch.full((2, 3, 8, 2), torch.nan)

    def new(motion: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        asked.append((motion, tuple(shape)))
        return memory

    gathered = gather(items, [5, 2], new)
    assert isinstance(gathered, Gathered)
    assert gathered.motion is memory
    assert len(asked) == 1
    assert asked[0][0] is items[0]["motion"]
    assert asked[0][1] == (2, 3, 8, 2)
    for row, item, moved in zip(memory, items, gathered, strict=True):
        frames = item["motion"].shape[1]
        assert torch.equal(row[:, :frames], item["motion"])
        assert not row[:, frames:].any()
        assert moved["motion"].data_ptr() == row.data_ptr()
        assert {key: value for key, value in moved.items() if key != "motion"} == {
            key: value for key, value in item.items() if key != "motion"
        }
    memory[1, 2, 0, 1] = 9.0  # the item is the batch's own memory
    assert gathered[1]["motion"][2, 0, 1] == 9.0


def test_gathered_items_have_the_persons_and_columns_of_the_first() -> None:
    first = {"motion": torch.ones(2, 3, 4)}
    for shape, frames in (((1, 3, 4), 3), ((2, 3, 5), 3), ((2, 2, 4), 3), ((2, 4, 4), 3)):
        with pytest.raises(ValueError, match=r"items: expected motion \(2, 3, 4\), got "):
            gather([first, {"motion": torch.ones(shape)}], [3, frames])
    with pytest.raises(ValueError, match="zip"):
        gather([first], [3, 3])


def test_padding_is_zero_whatever_the_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, torch.nan))
    motions = [torch.full((2, frames, 3), float(frames)) for frames in (7, 2, 8)]
    motion, lengths = pad_motion(motions, multiple=5)
    assert motion.shape == (3, 2, 10, 3)
    assert lengths.tolist() == [7, 2, 8]
    for row, frames in zip(motion, (7, 2, 8), strict=True):
        assert (row[:, :frames] == frames).all()
        assert (row[:, frames:] == 0).all()
