"""Choose, force and explain a backend of the InterMoE block.

``reference`` is plain PyTorch and serves everything; ``native`` is C++ on CPU and CUDA; ``triton`` is Triton on CUDA
(on CPU through its interpreter, for tests). The fastest usable one serves unless one is forced, and a forced one that
cannot serve raises: nothing falls back in silence. Order of precedence: the ``backend`` argument of a call, the
innermost ``with use(...)``, the environment variable ``INTERMOE_BACKEND``, speed.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

ENVIRONMENT_VARIABLE = "INTERMOE_BACKEND"

STEPS = (
    "route_forward",
    "route_backward",
    "select",
    "select_backward",
    "experts_forward",
    "experts_backward",
    "combine",
)
"""Functions that a backend's module must offer."""

_SPEED = {"cpu": ("native", "reference"), "cuda": ("triton", "native", "reference")}
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_detects_nan: contextvars.ContextVar[bool] = contextvars.ContextVar("intermoe_detect_nan", default=False)
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("intermoe_backend", default=None)


@dataclass(frozen=True)
class Status:
    """Whether a backend is usable on this machine, where, and if not why and what to do about it.

    ``devices`` are the device types it serves (the reference serves any). For a usable backend ``reason`` says what it
    runs on.
    """

    name: str
    usable: bool
    devices: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


NAMES = ("triton", "native", "reference")


def available() -> dict[str, Status]:
    """Every backend with its status on this machine, fastest first."""
    return {name: _status(name) for name in NAMES}


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force a backend within the ``with`` block, in this thread or task only.

    Raises ``ValueError`` for an unknown name and ``RuntimeError``, listing every backend's reason, for an unusable one.
    A function compiled by ``torch.compile`` keeps the backend that was in force when it was traced.
    """
    _known(name, "name")
    if not _status(name).usable:
        raise RuntimeError(_refusal(f"backend {name!r} is not usable here"))
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def detect_nan() -> Iterator[None]:
    """Within, in this thread or task, routing logits that are NaN or infinite raise ``ValueError``, on every backend.

    Without, a NaN selects nothing and its token's other gates are NaN. The check computes the logits a second time and
    waits for the device: it is for finding a fault, and not for functions compiled by ``torch.compile``.
    """
    token = _detects_nan.set(True)
    try:
        yield
    finally:
        _detects_nan.reset(token)


@torch.compiler.assume_constant_result
def detects_nan() -> bool:
    """Whether the code runs within ``detect_nan``."""
    return _detects_nan.get()


@torch.compiler.assume_constant_result
def resolve(device: torch.device, dtype: torch.dtype, requested: str | None = None) -> str:
    """Name of the backend that serves tensors of ``dtype`` on ``device``.

    Raises ``ValueError`` for an unknown name and ``RuntimeError``, listing every backend's reason, when the forced
    backend cannot serve.
    """
    forced: str | None
    if requested is not None:
        forced, source = requested, "backend"
    elif (scoped := _forced.get()) is not None:
        forced, source = scoped, "backends.use"
    else:
        forced, source = os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE
    if forced is not None:
        _known(forced, source)
        if problem := _problem(forced, device, dtype):
            message = f"{source}={forced!r} cannot serve {dtype} on {device}: {problem}"
            raise RuntimeError(_refusal(message))
        return forced
    return next(name for name in _SPEED.get(device.type, ("reference",)) if not _problem(name, device, dtype))


def load(name: str) -> ModuleType:
    """The module that holds the step functions of the backend ``native`` or ``triton`` (see ``STEPS``)."""
    # Import statements, because torch.compile can trace them.
    if name == "native":
        from intermoe.kernels import native

        return native
    from intermoe.kernels import triton

    return triton


def _known(name: str, source: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {NAMES}")


def _problem(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend cannot serve this device and dtype, or ``None`` if it can."""
    if name == "reference":
        return None
    status = _status(name)
    if not status.usable:
        return status.reason
    if device.type not in status.devices:
        return f"serves {' and '.join(status.devices)} only" + (f" ({status.reason})" if status.reason else "")
    if dtype not in _KERNEL_DTYPES:
        return "serves float32, float16 and bfloat16 only"
    if name == "triton" and device.type == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return None


def _refusal(message: str) -> str:
    lines = [f"{message}. Backends on this machine:"]
    for status in available().values():
        state = f"usable on {', '.join(status.devices)}" if status.usable else "not usable"
        details = "; ".join(part for part in (status.reason, status.remedy) if part)
        lines.append(f"  {status.name}: {state}" + (f" ({details})" if details else ""))
    return "\n".join(lines)


def _status(name: str) -> Status:
    if name == "reference":
        return Status("reference", True, ("any",))
    return _native_status() if name == "native" else _triton_status(bool(os.environ.get("TRITON_INTERPRET")))


def _missing_steps(name: str) -> list[str]:
    module = load(name)
    return [step for step in STEPS if not hasattr(module, step)]


@functools.cache
def _native_status() -> Status:
    from intermoe.kernels.native import library

    try:
        instruction_set = library.instruction_set()
    except library.LibraryUnavailable as error:
        return Status("native", False, (), error.reason, error.remedy)
    if missing := _missing_steps("native"):
        return Status("native", False, (), f"has no {', '.join(missing)}", "force another backend")
    on_cpu = f"C++ kernels, {instruction_set}"
    try:
        library.check_cuda(0 if torch.cuda.is_available() else None)
    except library.LibraryUnavailable as error:
        return Status("native", True, ("cpu",), f"{on_cpu}; {error.reason}", error.remedy)
    return Status("native", True, ("cpu", "cuda"), f"{on_cpu}; CUDA kernels")


@functools.cache
def _triton_status(interpreted: bool) -> Status:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return Status("triton", False, (), f"triton cannot be imported: {error}", "pip install triton (Linux only)")
    try:
        missing = _missing_steps("triton")
    except ImportError as error:
        return Status("triton", False, (), f"its kernels cannot be imported: {error}", "install a newer triton")
    if missing:
        return Status("triton", False, (), f"has no {', '.join(missing)}", "force another backend")
    if interpreted:
        return Status("triton", True, ("cpu",), "TRITON_INTERPRET is set: interpreted, for tests only", "unset it")
    if not torch.cuda.is_available():
        remedy = "use a machine with an NVIDIA GPU, its driver and a CUDA build of torch"
        return Status("triton", False, (), "no CUDA device", remedy)
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        found = f"compute capability {capability[0]}.{capability[1]}"
        return Status("triton", False, (), f"{found} is below 8.0", "use an Ampere GPU or newer, or another backend")
    return Status("triton", True, ("cuda",))
