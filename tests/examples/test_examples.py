"""Every example runs, a few steps of it, and prints dense and MoE side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments, "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: str) -> dict[str, float]:
    rows = re.findall(r"^(\S.*?)\s{2,}([0-9.]+)\s+(?:-|[0-9.]+)\s+[0-9.]+\s+[0-9,]+\s+\d+ s$", output, re.MULTILINE)
    return {name: float(loss) for name, loss in rows}


def test_dit_images() -> None:
    pytest.importorskip("diffusers")
    output = run("dit_images.py")
    assert set(losses(output)) == {"dense", "InterMoE"}
    assert "same output bit for bit: True" in output
    assert re.search(r"65\.5 ->\s+65\.5", output)  # kFLOP per token, dense and MoE


def test_motion_transformer() -> None:
    assert set(losses(run("motion_transformer.py"))) == {"dense", "InterMoE"}


def test_two_person_upcycling(dancers: Path) -> None:
    output = run("two_person_upcycling.py", str(dancers))
    assert set(losses(output)) == {"dense", "dense, trained on", "InterMoE, trained on"}
    dense, upcycled = re.findall(r"(?:dense|every expert) ([0-9.]{6,})", output)
    assert float(upcycled) == pytest.approx(float(dense), rel=1e-5)


def test_capacity_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("capacity_curves.py", "--out", str(tmp_path))
    curves = json.loads((tmp_path / "capacity.json").read_text())
    assert [len(curves[name]) for name in ("dense", "capacities", "experts")] == [4, 4, 4]
    # one model is on both curves
    assert curves["experts"][2] == curves["capacities"][1]
    assert (tmp_path / "capacity.svg").read_text().count("<svg") == 1


def test_steering(tmp_path: Path) -> None:
    for need in ("diffusers", "PIL"):
        pytest.importorskip(need)
    from PIL import Image

    run("steering.py", "--out", str(tmp_path))
    frames = {path.stem: Image.open(path).n_frames for path in tmp_path.glob("*.gif")}
    assert frames == {"reaction": 30, "gap": 30, "target": 30, "persons": 30, "timeline": 60, "live": 60}


def test_every_example_is_run() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"comparison.py"}
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    assert scripts <= tested
