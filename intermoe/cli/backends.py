"""``intermoe backends``: versions, devices and the backends with their reasons."""

from __future__ import annotations

import platform
from importlib import metadata

import typer


def backends() -> None:
    """Show versions, devices, and which backends of the block this machine can use, or why not and what to do."""
    typer.echo(report())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    import torch

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
    from intermoe import backends

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
