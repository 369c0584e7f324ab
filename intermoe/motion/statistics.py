"""Mean and standard deviation of the motion columns, stored with every model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intermoe.files import replacing, write_json
from intermoe.motion.arrays import Array, ArrayOrTensor
from intermoe.reading import read_json, read_npz

# Below this a column counts as constant (rigid joints): dividing by its own deviation would only amplify rounding. The
# smallest real deviations, of velocities in metres per frame, are several times as large.
STD_FLOOR = 1e-3
FAMILIAR = 4.0


@dataclass(frozen=True, eq=False)
class Statistics:
    """``mean`` and ``std``, float32 numpy arrays of one shape (C,); ``std`` is positive.

    Raises:
        ValueError: shapes differ, a value is not finite or a deviation is not positive.
    """

    mean: Array
    std: Array

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = np.asarray(getattr(self, name))
            with np.errstate(over="ignore"):
                values = np.array(given, dtype=np.float32) if given.dtype.kind in "fiu" else np.zeros(())
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ValueError(
                    f"{name}: expected a vector of finite numbers, got {given.dtype} of shape {given.shape}"
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.mean.shape != self.std.shape:
            raise ValueError(f"std: expected the shape of mean {self.mean.shape}, got {self.std.shape}")
        if not (self.std > 0).all():
            raise ValueError(f"std: expected positive numbers, got a smallest of {self.std.min()}")

    def normalise(self, x: ArrayOrTensor) -> ArrayOrTensor:
        """(x - mean) / std over the last dimension; numpy in, numpy out; a tensor keeps device and dtype."""
        mean, std = self._like(x)
        normalised: ArrayOrTensor = (x - mean) / std
        return normalised

    def denormalise(self, x: ArrayOrTensor) -> ArrayOrTensor:
        """x * std + mean over the last dimension, the inverse of ``normalise``."""
        mean, std = self._like(x)
        restored: ArrayOrTensor = x * std + mean
        return restored

    def familiar(self, x: Tensor) -> Tensor:
        """x as a network can read it that knows the motion of these statistics alone.

        Columns that did not vary there take their mean, others are brought to within ``FAMILIAR`` standard deviations.
        Rotations that are a fit to joints have their own idea of bones that never turn, hundreds of deviations off.
        """
        mean, std = self._like(x)
        reach = torch.where(std > 2 * STD_FLOOR, FAMILIAR * std, 0.0)
        return x.clip(mean - reach, mean + reach)

    def _like(self, x: ArrayOrTensor) -> tuple[Any, Any]:
        if x.shape[-1] != self.mean.shape[0]:
            raise ValueError(f"x: expected last dimension {self.mean.shape[0]}, got {tuple(x.shape)}")
        if isinstance(x, torch.Tensor):
            return torch.tensor(self.mean).to(x), torch.tensor(self.std).to(x)
        return self.mean, self.std

    def save(self, path: str | Path, *, exclusive: bool = False) -> None:
        """Write a ``.json`` or ``.npz`` file, whole or not at all. Raises ``ValueError`` for another suffix.

        With ``exclusive`` it raises ``FileExistsError`` in place of replacing a file that is there.

        Either knows its content: the archive has checksums, the text gets ``digest``.
        """
        path = Path(path)
        _check_suffix(path)
        if path.suffix == ".npz":
            with replacing(path, exclusive=exclusive) as temporary:
                np.savez(temporary, mean=self.mean, std=self.std)
        else:
            values = {"mean": self.mean.tolist(), "std": self.std.tolist(), "hash": self.digest()}
            write_json(path, values, exclusive=exclusive, indent=None)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what ``save`` wrote, or another file of ``mean`` and ``std``.

        Raises:
            ValueError: the file holds something else, or was edited since; names it. OSError: no such file.
        """
        path = Path(path)
        _check_suffix(path)
        saved = None
        if path.suffix == ".npz":
            mean, std = read_npz(path, "mean", "std")
        else:
            values = read_json(path)
            if not isinstance(values, dict) or not {"mean", "std"} <= values.keys():
                raise ValueError(f"{path}: expected motion statistics, mean and std, got neither or one")
            mean, std, saved = values["mean"], values["std"], values.get("hash")
        try:
            statistics = cls(mean, std)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected motion statistics: {error}") from error
        if saved not in (None, statistics.digest()):
            raise ValueError(f"{path}: not as it was saved: its numbers do not fit its hash")
        return statistics

    def digest(self) -> str:
        """32 hexadecimal digits of mean and deviation."""
        content = np.stack([self.mean, self.std]).astype("<f4").tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"path: expected a .json or .npz file, got {path}")
