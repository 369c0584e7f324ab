"""Where the CUDA kernels can be tested: on a GPU, and compiled for the CPU with an emulation of CUDA's threads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native import experts, library, moe, registry, route

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory):
    """csrc/ with its CUDA kernels compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the emulation of CUDA is built with g++ on Linux")
    folder = tmp_path_factory.mktemp("emulated")
    defines = ["INTERMOE_EMULATED", "INTERMOE_CUDA=1", "INTERMOE_VARIANT=baseline", "INTERMOE_VARIANT_baseline=1"]
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-Wno-dangling-pointer", *(f"-D{define}" for define in defines)]
    command += [f"-I{ROOT / 'csrc'}", f"-I{Path(__file__).parent}", "-x", "c++"]
    command += [str(path) for path in sorted((ROOT / "csrc").iterdir()) if path.suffix in (".cpp", ".cu")]
    path = folder / "libintermoe_emulated.so"
    built = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False, timeout=900)
    assert built.returncode == 0, built.stderr
    return library.open_library(path)


@pytest.fixture(params=["emulated", "emulated backwards", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Device on which the native backend runs its CUDA kernels; emulated, a block's threads run in either order."""
    if request.param == "gpu":
        status = backends.available()["native"]
        if "cuda" not in status.devices:
            pytest.skip(f"native backend does not serve CUDA here: {status.reason}")
        return torch.device("cuda", 0)
    native = request.getfixturevalue("emulated_library")
    if request.param == "emulated backwards":
        monkeypatch.setenv("EMULATED_BACKWARDS", "1")
    monkeypatch.setattr(library, "load", lambda: native)
    monkeypatch.setattr(registry, "_function", lambda name, cuda: getattr(native, f"intermoe_{name}_cuda"))
    monkeypatch.setattr(registry, "stream_of", lambda tensor: (0, 0))
    for module in (registry, route, experts, moe):
        monkeypatch.setattr(module, "on_cuda", lambda tensor: True)
    return torch.device("cpu")
