"""NVIDIA's compute-sanitizer finds no access out of bounds and no race in a small forward and backward."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from intermoe import backends

STATUS = backends.available()["triton"]
TOOL = shutil.which("compute-sanitizer")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in STATUS.devices, reason=f"triton does not serve CUDA here: {STATUS.reason}"),
    pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed"),
]
CODE = """
import torch
from intermoe import InterMoEBlock
block = InterMoEBlock(dim=97, num_experts=7, expert_dim=63, cond_dim=32, backend="triton").cuda()
torch.nn.init.normal_(block.motion_router)
hidden = torch.randn(3, 22, 97, device="cuda", requires_grad=True)
block(hidden, torch.randn(3, 32, device="cuda")).square().sum().backward()
block.update_selection_bias()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("check", ["memcheck", "racecheck"])
def test_nothing_is_found(check: str) -> None:
    command = [str(TOOL), "--tool", check, "--error-exitcode", "1", sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
