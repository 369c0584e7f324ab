"""What the assembler makes of every CUDA kernel for every architecture that is shipped; no GPU is needed to tell."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(path.name for path in (ROOT / "csrc").glob("*.cu") if path.name != "library.cu")
COMPILED = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def architectures() -> list[str]:
    """The compute capabilities that CMakeLists.txt lists."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", text)
    assert found is not None
    return [name.removesuffix("-real") for name in found[1].split()]


def test_every_supported_card_has_its_machine_code() -> None:
    """Ampere, Ada and Hopper; the last one's PTX serves what comes after. Other tests compile what the list holds."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)" in text
    assert architectures() == ["80", "86", "89", "90"]


@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_spills(source: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures()]
    command = [nvcc, "-std=c++17", "-O3", *targets, "-Xptxas", "-v", "-fatbin", "-o", str(tmp_path / "out")]
    built = subprocess.run(
        [*command, str(ROOT / "csrc" / source)], capture_output=True, text=True, check=False, timeout=900
    )
    assert built.returncode == 0, built.stderr
    report = COMPILED.findall(built.stderr + built.stdout)
    by_architecture = {name: {kernel for kernel, found, *_ in report if found == name} for name in architectures()}
    assert all(kernels == {kernel for kernel, *_ in report} and kernels for kernels in by_architecture.values())
    for kernel, architecture, *used in report:
        stack, stores, loads, registers = map(int, used)
        assert stack == stores == loads == 0, f"{kernel} for sm_{architecture}: {used}"
        # 128 threads with 128 registers each leave room for four blocks on every multiprocessor.
        assert registers <= 128, f"{kernel} for sm_{architecture} takes {registers} registers"
