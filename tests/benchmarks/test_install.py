"""The suite is part of the package, and needs no pytest there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from intermoe.benchmarks.harness import suite
from intermoe.benchmarks.harness.case import Scope

ROOT = Path(__file__).resolve().parents[2]


def test_benchmarks_are_part_of_intermoe() -> None:
    module = importlib.import_module("intermoe.benchmarks")
    assert Path(module.__file__ or "").parent == ROOT / "benchmarks"


def test_there_is_a_file_for_every_step_and_a_step_for_every_file() -> None:
    files = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == set(suite.STEPS)


@pytest.fixture(scope="module")
def full() -> list[str]:
    """Names of all cases of a full run, which take a while to list."""
    return [case.name for case in suite.cases(Scope(torch.device("cpu"), "full"))]


def test_every_file_lists_cases_without_pytest(full: list[str]) -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import torch\n"
        "from intermoe.benchmarks.harness import suite; from intermoe.benchmarks.harness.case import Scope\n"
        "print(len(suite.cases(Scope(torch.device('cpu'), 'full'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900)
    assert int(done.stdout) == len(full)
    assert len(set(full)) == len(full)


def test_the_default_run_covers_the_published_comparisons(full: list[str]) -> None:
    names = {case.name for case in suite.cases(Scope(torch.device("cpu")))}
    sizes = "D=768 E=8 F=1024"
    assert f"moe forward float32 S=4800 {sizes}" in names
    assert f"moe forward + backward float32 S=4800 {sizes}" in names
    assert f"moe forward bfloat16 S=4800 {sizes}" in names
    assert "denoiser call with guidance float32 B=2 P=2 T'=75" in names
    assert names < set(full) | {name for name in names if name.startswith("training denoiser")}
    assert f"moe forward + backward bfloat16 S=4800 {sizes}" in full
    assert "scaling tokens, forward float32 S=1000000 D=256 E=8 F=512" in full
