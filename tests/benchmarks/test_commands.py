"""Every command beside ``intermoe bench``: what its help says."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "exchange",
    "live",
    "page",
    "scale",
    "harness.host",
    "harness.products",
    "harness.roofline",
    "harness.shares",
)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_is_for_and_has_what_is_documented(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line of the module; and every option that stands beside the command anywhere."""
    if name in ("harness.host", "harness.roofline"):
        pytest.importorskip("triton")
    module = importlib.import_module(f"intermoe.benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(module.__name__, run_name="__main__")
    told = words(capsys.readouterr().out)
    assert module.__doc__.splitlines()[0] in told
    documented = [module.__doc__, *(path.read_text(encoding="utf-8") for path in DOCUMENTS)]
    lines = re.findall(rf"-m intermoe\.benchmarks\.{re.escape(name)}\b[^`\n|]*", "\n".join(documented))
    assert lines
    options = {option for line in lines for option in re.findall(r"--[a-z-]+", line.partition("#")[0])}
    assert options <= set(re.findall(r"--[a-z-]+", told))
