"""Motion to files: names that are safe to use as such, and the .npz with everything needed to repeat the result."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intermoe.files import replacing

SLUG_LENGTH = 48
_VERSIONED = ("intermoe", "torch", "diffusers", "numpy")


def slug(prompt: str) -> str:
    """A short file name for ``prompt``: lower-case ASCII letters, digits and hyphens only, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > SLUG_LENGTH:
        whole, _, _ = words[: SLUG_LENGTH + 1].rpartition("-")
        words = whole or words[:SLUG_LENGTH]
    return words or "motion"


def output_stem(folder: str | Path, prompt: str, suffixes: Collection[str]) -> Path:
    """``folder/slug``, numbered where a file of that name and one of ``suffixes`` (``".npz"``) exists already."""
    base = Path(folder) / slug(prompt)
    stem, number = base, 1
    while any(stem.with_name(stem.name + suffix).exists() for suffix in suffixes):
        number += 1
        stem = base.with_name(f"{base.name}-{number}")
    return stem


def versions() -> dict[str, str]:
    """Versions of the packages that determine a result."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def save_npz(
    path: str | Path,
    *,
    joints: npt.NDArray[np.float32],
    motion: npt.NDArray[np.float32],
    prompt: str,
    seed: int,
    model: str,
    settings: Mapping[str, str | int | float],
    fps: int = 30,
) -> None:
    """Write one motion; ``np.load`` reads it without pickle.

    Args:
        path: ends in ``.npz``. joints: float32 (P, T, J, 3), metres, Y up. motion: float32 (P, T, ...).
        prompt, seed, model: what it was made from. settings: further scalars, each becomes an entry.

    Raises:
        ValueError: arrays of another shape or type, or a setting whose name is taken.
    """
    if joints.ndim != 4 or joints.shape[3] != 3 or joints.dtype != np.float32:
        raise ValueError(f"joints: expected float32 (persons, T, joints, 3), got {joints.dtype} {joints.shape}")
    if motion.shape[:2] != joints.shape[:2] or motion.dtype != np.float32:
        raise ValueError(f"motion: expected float32 {joints.shape[:2]} + (width,), got {motion.dtype} {motion.shape}")
    entries: dict[str, Any] = {
        "joints": joints,
        "motion": motion,
        "prompt": prompt,
        "seed": seed,
        "model": model,
        "fps": fps,
    }
    entries |= {f"version_{name}": version for name, version in versions().items()}
    taken = sorted(entries.keys() & settings.keys())
    if taken:
        raise ValueError(f"settings: expected names other than {sorted(entries)}, got {taken}")
    entries |= settings
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **entries)
