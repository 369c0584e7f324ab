"""Descriptions of each person beside the interaction's: read, paired, exchanged with their persons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from intermoe.data.interhuman import DATA_SET
from intermoe.pipeline import MotionPipeline
from intermoe.systems.in2in.texts import join_texts, split_texts
from intermoe.train.individual import FOLDER, IndividualTexts
from intermoe.train.motion import run_motion

RECIPE = {
    "system": "in2in",
    "data": {"batch_size": 2},
    "network": {"text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16},
    "text": {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16, "vocab_size": 80},
    "optim": {"steps": 1, "warmup_steps": 0},
}  # fmt: skip


@pytest.fixture
def described(pairs: Path, tmp_path: Path) -> Path:
    """The made-up data with one or two descriptions of each person, but for item 3."""
    root = tmp_path / "described"
    shutil.copytree(pairs, root)
    for person in (1, 2):
        (root / FOLDER / f"person{person}").mkdir(parents=True)
        for name in ("1", "2", "4", "5", "6", "7"):
            lines = [f"walks left {person}", f"stands {person}"][: 1 + (name == "1")]
            (root / FOLDER / f"person{person}" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_captions_get_descriptions_and_items_without_are_left_out(described: Path) -> None:
    dataset = IndividualTexts(DATA_SET, described, "train", min_frames=16)
    assert dataset.names == ["1", "2", "4", "5"]
    assert [split_texts(caption, 2)[1:] for caption in dataset.captions(0)] == [
        ["walks left 1", "walks left 2"], ["stands 1", "stands 2"], ["walks left 1", "walks left 2"],
    ]  # fmt: skip
    assert dataset.draw(2, 0)["motion"].shape[1] == dataset.num_frames(2) == 26


def test_descriptions_change_places_with_their_persons_and_are_mirrored(described: Path) -> None:
    dataset = IndividualTexts(DATA_SET, described, "train", min_frames=16, mirror=True, swap_persons=True)
    seen = set()
    for epoch in range(40):
        choice, caption = dataset.choose(1, epoch)
        side = "right" if choice.mirrored else "left"
        order = (2, 1) if choice.swapped else (1, 2)
        assert split_texts(caption, 2)[0].startswith(("the first dancer", "the second dancer", "two people dance"))
        assert split_texts(caption, 2)[1:] == [f"walks {side} {person}" for person in order]
        seen.add((choice.mirrored, choice.swapped))
    assert len(seen) == 4


def test_data_are_told_apart_by_their_descriptions(described: Path, pairs: Path) -> None:
    plain = IndividualTexts(DATA_SET, pairs, "val", min_frames=16)
    assert plain.captions(0)[0] == "the first dancer turns to the left"
    first = IndividualTexts(DATA_SET, described, "val", min_frames=16).digest()
    (described / FOLDER / "person1" / "6.txt").write_text("sits", encoding="utf-8")
    second = IndividualTexts(DATA_SET, described, "val", min_frames=16).digest()
    assert len({plain.digest(), first, second}) == 3
    shutil.rmtree(described / FOLDER / "person2")
    with pytest.raises(ValueError, match="split 'val': expected items with descriptions in annots_individual"):
        IndividualTexts(DATA_SET, described, "val", min_frames=16)


def test_texts_are_joined_and_split() -> None:
    assert split_texts(join_texts("a|b", ["c", "d"]), 2) == ["a,b", "c", "d"]


def test_a_model_learns_the_words_of_the_descriptions(described: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE), encoding="utf-8")
    pipeline = MotionPipeline.from_pretrained(run_motion(path, tmp_path / "run", data=described))
    assert pipeline.unknown_words("dance | stands | walks juggles") == ["juggles"]
    torch.manual_seed(0)
    texts = ["they bow | one stands | one walks", "they bow"]
    assert all(motion.isfinite().all() for motion in pipeline.sample(texts, [16, 16], [0, 0], num_inference_steps=2))
