"""The published arrays of InterMask, opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.systems.intermask.tokenizer import NUM_PARTS


class Arrays:
    """A file of reference arrays: tensors by name, the state dict and the configuration in it."""

    def __init__(self, archive: Any) -> None:
        self.archive = archive
        self.state = {key[6:]: self[key] for key in archive.files if key.startswith("state/")}
        self.config: dict[str, Any] = json.loads(str(archive["config"]))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.archive[name])

    def number(self, name: str) -> float:
        return float(self.archive[name])

    def codes(self, name: str) -> Tensor:
        """(N, 5 * T / 4, 1) as the grid that the tokeniser takes."""
        return self[name][..., 0].unflatten(1, (NUM_PARTS, -1))

    def grid(self, name: str) -> Tensor:
        """(..., tokens of both persons) as (..., 2, 5, L)."""
        return self[name].unflatten(-1, (2, NUM_PARTS, -1))

    def mask(self) -> Tensor:
        """(B, L), True = valid: both persons and all parts have the same."""
        padding = self.grid("padding_mask")
        assert (padding == padding[:, :1, :1]).all()
        return ~padding[:, 0, 0]


@pytest.fixture
def tokens(golden: Callable[[str], Any]) -> Callable[[str], Arrays]:
    """Arrays of the tokeniser of a data set."""
    files = {"interhuman": "peers/intermask_vq.npz", "interx": "peers/intermask_vq_interx.npz"}
    return lambda layout: Arrays(golden(files[layout]))


@pytest.fixture
def unmasking(golden: Callable[[str], Any]) -> Arrays:
    """Arrays of the masked transformer."""
    return Arrays(golden("peers/intermask_transformer.npz"))
