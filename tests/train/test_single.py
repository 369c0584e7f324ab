"""Single persons: read as a pair's first person is, and learned by systems of one person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS
from intermoe.pipeline import MotionPipeline
from intermoe.train.trainers import train

WIDTHS = {"text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2}
TEXT = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16, "vocab_size": 60}
REST = {
    "data": {"representation": "solo", "swap_persons": False, "batch_size": 2},
    "optim": {"steps": 2, "warmup_steps": 0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "vae": {"trainer": "vae", "window": 16, "model": {"representation": "solo", "latent_dim": 4, "num_blocks": 1}},
    "denoiser": {
        "trainer": "denoiser", "text": TEXT,
        "denoiser": {**WIDTHS, "input_dim": 28, "num_experts": 3, "expert_dim": 8},
    },
    "mdm": {"trainer": "mdm", "text": TEXT, "model": {**WIDTHS, "input_dim": 262, "feedforward_dim": 16}},
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first persons of the made-up pairs in the layout of single persons."""
    root = tmp_path_factory.mktemp("alone")
    for folder in ("motions", "annots", "split"):
        (root / folder).mkdir()
    for folder in ("annots", "split"):
        for path in (pairs / folder).iterdir():
            (root / folder / path.name).write_bytes(path.read_bytes())
    for path in (pairs / "motions_processed" / "person1").glob("*.npy"):
        raw = np.load(path)
        pos, rot6d = raw[:, :66].reshape(-1, 22, 3) / 2e-4, raw[:, 186:312].reshape(-1, 21, 6) * 8192
        np.savez(root / "motions" / path.stem, pos=pos.round().astype(np.int16), rot6d=rot6d.round().astype(np.int16))
    return root


def test_a_person_alone_is_the_first_of_a_pair(alone: Path, pairs: Path) -> None:
    for mirror in (False, True):
        single = MotionDataset(DATA_SETS["solo"], alone, "train", min_frames=16, mirror=mirror)
        both = InterHumanDataset(pairs, "train", min_frames=16, mirror=mirror)
        assert single.names == both.names
        for index in range(len(both)):
            ours, theirs = single.draw(index, 3), both.draw(index, 3)
            assert ours["caption"] == theirs["caption"]
            assert ours["motion"].shape == (1, *theirs["motion"].shape[1:])
            # stored steps of 0.2 mm move each hip by 0.1 mm, 0.2 m apart: a turn of 1e-3, at 1 m from the origin
            assert (ours["motion"][0] - theirs["motion"][0])[:, :258].abs().max() < 2e-3


def test_persons_cannot_change_places_alone(alone: Path) -> None:
    with pytest.raises(ValueError, match="swap_persons: expected false for solo"):
        MotionDataset(DATA_SETS["solo"], alone, "train", min_frames=16, swap_persons=True)


@pytest.fixture(scope="module")
def trained(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, start: Path | None = None) -> Path:
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**REST, **RECIPES[name]}), encoding="utf-8")
        return train(path, folder / name, start=start, data=alone)

    return run


@pytest.mark.parametrize("system", ["intermoe", "mdm"])
def test_systems_of_one_person(system: str, trained: Callable[..., Path]) -> None:
    folder = trained("mdm") if system == "mdm" else trained("denoiser", trained("vae"))
    pipeline = MotionPipeline.from_pretrained(folder)
    assert pipeline.config.system == system
    assert (pipeline.representation.name, pipeline.representation.persons) == ("solo", 1)
    result = pipeline(["two people dance"], num_frames=20, num_inference_steps=2)
    assert result.joints.shape == (1, 1, 20, 22, 3)
    assert torch.isfinite(result.motion).all()
