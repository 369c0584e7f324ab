"""These tests need a process that imported Triton as an interpreter; ``test_interpreter.py`` beside starts one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intermoe.kernels.triton.registry import INTERPRETED

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        return
    reason = "needs TRITON_INTERPRET=1 when Python starts; test_interpreter.py runs this folder so"
    for item in items:
        if FOLDER in Path(item.path).parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def nan_filled(nan_filled_memory: None) -> None:
    """Every test here sees uninitialised memory as NaN."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
