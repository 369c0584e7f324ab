"""``python -m intermoe``: versions, devices and the backends with their reasons."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from intermoe import backends


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    lines = [
        f"cpu   {platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        lines.append(f"cuda:{index} {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    return lines


def report() -> str:
    """The table as text."""
    lines = ["versions"]
    for name in ("intermoe", "torch", "triton", "numpy", "diffusers", "transformers", "accelerate"):
        lines.append(f"  {name:<13}{_version(name)}")
    lines += [f"  {'python':<13}{platform.python_version()} on {platform.system()}", "devices"]
    lines += [f"  {line}" for line in _devices()]
    lines.append("backends (fastest first)")
    for status in backends.available().values():
        state = f"usable on {', '.join(status.devices)}" if status.usable else "not usable"
        lines.append(f"  {status.name:<13}{state}")
        if status.reason:
            lines.append(f"  {'':<13}{status.reason}")
        if status.remedy:
            lines.append(f"  {'':<13}remedy: {status.remedy}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
