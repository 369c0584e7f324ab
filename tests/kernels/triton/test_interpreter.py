"""Runs ``interpreter`` and Triton's part of ``tests/ops`` in processes that import Triton as an interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
PARTS = {
    "interpreter": [str(Path(__file__).parent / "interpreter")],
    "ops": [str(Path(__file__).parents[2] / "ops"), "-k", "triton"],  # the tests that all backends share
}


@pytest.mark.parametrize("name", PARTS)
def test_kernels_are_right_in_the_interpreter(name: str) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets already and runs the folder itself")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PARTS[name]],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout
