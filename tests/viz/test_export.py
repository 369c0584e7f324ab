"""Names and .npz files of generated motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.viz import output_stem, save_npz, slug

JOINTS = np.random.default_rng(0).normal(size=(2, 5, 22, 3)).astype(np.float32)
MOTION = np.random.default_rng(1).normal(size=(2, 5, 262)).astype(np.float32)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Two people bow, to each other.", "two-people-bow-to-each-other"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con\0|<>*?", "c-con"),
        ("Café  déjà-vu", "cafe-deja-vu"),
        ("两个人握手", "motion"),
        ("   ", "motion"),
        ("-" * 300, "motion"),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_slug_is_short() -> None:
    assert slug("turn around " * 100) == "-".join(["turn-around"] * 4)
    assert slug("x" * 100) == "x" * 48
    assert slug("y" * 48 + " z") == "y" * 48


def test_stems_never_meet_an_existing_file(tmp_path: Path) -> None:
    suffixes = (".npz", ".mp4")
    first = output_stem(tmp_path, "two people bow", suffixes)
    assert first == tmp_path / "two-people-bow"
    first.with_name(first.name + ".mp4").touch()
    second = output_stem(tmp_path, "Two people bow!", suffixes)
    assert second == tmp_path / "two-people-bow-2"
    second.with_name(second.name + ".npz").touch()
    assert output_stem(tmp_path, "two people bow", suffixes).name == "two-people-bow-3"
    assert output_stem(tmp_path, "two people bow", (".gif",)).name == "two-people-bow"


def write(path: Path, **changes: Any) -> None:
    save_npz(
        path,
        **{
            "joints": JOINTS,
            "motion": MOTION,
            "prompt": "two people bow",
            "seed": 7,
            "model": "salsa",
            "settings": {"guidance_scale": 3.5, "scheduler": "ddim"},
            **changes,
        },
    )


def test_npz_holds_everything_without_pickle(tmp_path: Path) -> None:
    write(tmp_path / "motion.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["motion.npz"]
    with np.load(tmp_path / "motion.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["joints"], JOINTS)
        np.testing.assert_array_equal(archive["motion"], MOTION)
        assert archive["joints"].dtype == np.float32
        assert str(archive["prompt"]) == "two people bow"
        assert (int(archive["seed"]), str(archive["model"]), int(archive["fps"])) == (7, "salsa", 30)
        assert (float(archive["guidance_scale"]), str(archive["scheduler"])) == (3.5, "ddim")
        assert {"version_intermoe", "version_torch"} <= set(archive)


def test_bad_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="joints: expected float32"):
        write(tmp_path / "a.npz", joints=JOINTS.astype(np.float64))
    with pytest.raises(ValueError, match="joints: expected float32"):
        write(tmp_path / "a.npz", joints=JOINTS[..., :2])
    with pytest.raises(ValueError, match="motion: expected float32"):
        write(tmp_path / "a.npz", motion=MOTION[:, :3])
    with pytest.raises(ValueError, match="settings: expected names other than"):
        write(tmp_path / "a.npz", settings={"seed": 3})
    assert list(tmp_path.iterdir()) == []
