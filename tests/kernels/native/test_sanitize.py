"""The C interface under AddressSanitizer and UndefinedBehaviorSanitizer, on shapes that are easy to get wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow  # most of it is compiling; test_emulated.py runs the same calls on every ordinary run
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    if sys.platform != "linux":
        pytest.skip("the sanitizers are built with GCC on Linux")
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DINTERMOE_SANITIZE=ON"]
    configure.append("-DINTERMOE_CUDA=OFF")
    subprocess.run(configure, check=True, capture_output=True, timeout=900)
    built = subprocess.run(
        ["cmake", "--build", str(tmp_path)], capture_output=True, text=True, check=False, timeout=900
    )
    assert built.returncode == 0, built.stdout
    options = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1", "OMP_NUM_THREADS": "2"}
    command = [str(tmp_path / "sanitize")]
    ran = subprocess.run(
        command, env={**os.environ, **options}, capture_output=True, text=True, check=False, timeout=900
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " calls, " in ran.stdout
