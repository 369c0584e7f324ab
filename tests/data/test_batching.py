"""Items of different length in one batch, by hand."""

from __future__ import annotations

import pytest
import torch

from intermoe.data.batching import collate, pad_motion
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
