"""Fixtures that several test folders share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reader of the reference arrays: ``golden("moe_block.npz")`` is a mapping, ``golden("x.json")`` parsed JSON."""

    def read(name: str) -> Any:
        path = SHARED / "golden" / name
        if not path.exists():
            pytest.skip(f"reference arrays are absent: {name} not found in ../shared/golden")
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return np.load(path, allow_pickle=False)

    return read


@pytest.fixture(scope="session")
def salsa() -> Path:
    """Folder of the two-person salsa motion capture in InterHuman's layout."""
    path = SHARED / "data" / "salsa"
    if not path.exists():
        pytest.skip("real motion is absent: ../shared/data/salsa not found")
    return path


@pytest.fixture
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised floating-point memory reads as NaN, so a result that depends on it cannot pass."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def relative_error(actual: Any, expected: Any) -> float:
    """Relative norm ||actual - expected|| / ||expected|| in float64 (absolute where expected is zero)."""
    a = torch.as_tensor(np.asarray(actual) if not isinstance(actual, torch.Tensor) else actual).detach().double()
    b = torch.as_tensor(np.asarray(expected) if not isinstance(expected, torch.Tensor) else expected).detach().double()
    if a.shape != b.shape:
        raise ValueError(f"actual: expected shape {tuple(b.shape)}, got {tuple(a.shape)}")
    norm = b.norm().item()
    return (a - b).norm().item() / (norm if norm > 0 else 1.0)


@pytest.fixture(scope="session", name="relative_error")
def relative_error_fixture() -> Callable[[Any, Any], float]:
    """The project's measure of difference; see ``relative_error``."""
    return relative_error
