"""Small faithful folders of the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CAPTION = "the first person waves to the left"


@pytest.fixture
def interhuman_folder(tmp_path: Path) -> Callable[..., Path]:
    """``interhuman_folder({"train": {"1": 40}})``: splits of names and numbers of frames in the file."""

    def make(splits: dict[str, dict[str, int]]) -> Path:
        root = tmp_path / "interhuman"
        rng = np.random.default_rng(0)
        for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
            (root / folder).mkdir(parents=True)
        for split, items in splits.items():
            (root / "split" / f"{split}.txt").write_text("\n".join(items), encoding="utf-8")
            for name, frames in items.items():
                (root / "annots" / f"{name}.txt").write_text(f"{CAPTION}\none turns right {name}\n", encoding="utf-8")
                for person in ("person1", "person2"):
                    motion = rng.normal(size=(frames, 492)).astype(np.float32)
                    np.save(root / "motions_processed" / person / f"{name}.npy", motion)
        return root

    return make


@pytest.fixture
def interx_folder(tmp_path: Path) -> Callable[..., Path]:
    """``interx_folder({"train": {"G1": array}})``: splits of names and arrays; captions with words and tags."""
    h5py = pytest.importorskip("h5py", reason="Inter-X's files need h5py")

    def make(splits: dict[str, dict[str, np.ndarray]], *, suffix: str = "", texts: str = "texts_processed") -> Path:
        root = tmp_path / "interx"
        for folder in ("motions", "splits", texts):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for split, items in splits.items():
            (root / "splits" / f"{split}.txt").write_text("\n".join(items), encoding="utf-8")
            tags = "#the/DET first/ADJ#0.0#0.0" if texts == "texts_processed" else ""
            for name in items:
                lines = f"{CAPTION}{tags}\nthey hug{tags}\n"
                (root / texts / f"{name}.txt").write_text(lines, encoding="utf-8")
            with h5py.File(root / "motions" / f"{split}{suffix}.h5", "w") as file:
                for name, array in items.items():
                    file.create_dataset(name, data=array, dtype="f4")
        return root

    return make


@pytest.fixture
def humanml3d_folder(tmp_path: Path) -> Callable[..., Path]:
    """``humanml3d_folder({"train": {"000001": 60}})``: splits of names and numbers of frames."""

    def make(splits: dict[str, dict[str, int]]) -> Path:
        root = tmp_path / "humanml3d"
        rng = np.random.default_rng(0)
        for folder in ("new_joint_vecs", "texts"):
            (root / folder).mkdir(parents=True)
        for split, items in splits.items():
            (root / f"{split}.txt").write_text("\n".join(items), encoding="utf-8")
            for name, frames in items.items():
                np.save(root / "new_joint_vecs" / f"{name}.npy", rng.normal(size=(frames, 263)).astype(np.float32))
                text = "a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\na person strolls#a/DET person/NOUN#nan#nan\n"
                (root / "texts" / f"{name}.txt").write_text(text, encoding="utf-8")
        return root

    return make
