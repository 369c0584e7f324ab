"""The CUDA kernels, emulated on a CPU: accesses outside their arrays, and index arithmetic beyond 2^32 elements."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(program: str, emulated_library: ctypes.CDLL, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Build the C++ program beside this file against the emulated library, and run it."""
    library, here = Path(emulated_library._name), Path(__file__).parent
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-DINTERMOE_EMULATED",
        f"-I{ROOT / 'csrc'}",
        f"-I{here}",
        str(here / program),
    ]
    command += [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(tmp_path / "program")]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert built.returncode == 0, built.stderr
    return subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=False, timeout=900)


def test_nothing_outside_is_accessed(emulated_library: ctypes.CDLL, tmp_path: Path) -> None:
    ran = run("sanitize.cpp", emulated_library, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " calls, " in ran.stdout


def test_more_than_32_bits_of_elements(emulated_library: ctypes.CDLL, tmp_path: Path) -> None:
    ran = run("huge.cpp", emulated_library, tmp_path)
    if ran.returncode == 77:
        pytest.skip("the system does not reserve some 200 GB of addresses")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " checks" in ran.stdout
