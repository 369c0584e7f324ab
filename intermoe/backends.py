"""Choose, force and explain a backend of the InterMoE block.

``reference`` is plain PyTorch, serves everything and defines what is right; the others are the packages of
``intermoe.kernels``, each of which says itself whether it is usable and what it serves. The fastest usable one serves
unless one is forced, and a forced one that cannot serve raises: nothing falls back in silence. Order of precedence: the
``backend`` argument of a call, the innermost ``with use(...)``, the environment variable ``INTERMOE_BACKEND``, speed.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from intermoe.kernels import BACKENDS
from intermoe.kernels.contract import Backend, Status

ENVIRONMENT_VARIABLE = "INTERMOE_BACKEND"
REFERENCE = "reference"
NAMES = (*BACKENDS, REFERENCE)

_detects_nan: contextvars.ContextVar[bool] = contextvars.ContextVar("intermoe_detect_nan", default=False)
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("intermoe_backend", default=None)
_loaded: dict[str, Backend | ImportError] = {}


class BackendError(RuntimeError, ValueError):
    """A backend was forced that cannot serve."""


def available() -> dict[str, Status]:
    """Every backend with its status on this machine, fastest first."""
    return {name: _status(name) for name in NAMES}


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force a backend within the ``with`` block, in this thread or task only.

    Raises ``ValueError`` for an unknown name and ``RuntimeError``, listing every backend's reason, for an unusable one.
    A function compiled by ``torch.compile`` keeps the backend that was in force when it was traced.
    """
    check(name, "name")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def check(name: str, source: str = "backend") -> None:
    """Raise ``ValueError`` for an unknown name, ``RuntimeError`` with every backend's reason for an unusable one."""
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {NAMES}, got unknown backend {name!r}")
    if not _status(name).usable:
        raise BackendError(_refusal(f"{source}: expected a usable backend, got {name!r}, which is not usable here"))


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
    return _serving(device, dtype, forced, source)


@functools.cache
def _serving(device: torch.device, dtype: torch.dtype, forced: str | None, source: str) -> str:
    if forced is None:
        name = next(name for name in NAMES if _is_automatic(name, device) and not _problem(name, device, dtype))
        if name == REFERENCE and device.type == "cpu":
            _tell_what_is_missing()
        return name
    if forced not in NAMES:
        raise ValueError(f"{source}: expected one of {NAMES}, got unknown backend {forced!r}")
    if problem := _problem(forced, device, dtype):
        raise BackendError(_refusal(f"{source}={forced!r} cannot serve {dtype} on {device}: {problem}"))
    return forced


@functools.cache
def _tell_what_is_missing() -> None:
    """Warn, once, where a CPU has no kernels: an installer hides what the build said."""
    for package in loaded():
        status = package.status()
        if "cpu" in package.AUTOMATIC and not status.usable:
            warnings.warn(
                f"intermoe runs without its {status.name} CPU kernels, several times slower: {status.reason}; "
                f"{status.remedy}",
                RuntimeWarning,
                stacklevel=4,
            )


def load(name: str) -> Backend:
    """The package of a backend that has kernels (see ``intermoe.kernels.contract``). Raises ``ImportError``."""
    found = _loaded.get(name)
    if found is None:
        try:
            found = cast(Backend, importlib.import_module(f"intermoe.kernels.{name}"))
        except ImportError as error:
            found = error
        _loaded[name] = found
    if isinstance(found, ImportError):
        raise found
    return found


def loaded() -> list[Backend]:
    """The packages that have been imported so far."""
    return [found for found in _loaded.values() if not isinstance(found, ImportError)]


def _status(name: str) -> Status:
    if name == REFERENCE:
        return Status(REFERENCE, True, ("any",))
    try:
        return load(name).status()
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        remedy = f"pip install --upgrade {missing} (where there is one for this system)"
        return Status(name, False, (), f"cannot be imported: {error}", remedy)


def _is_automatic(name: str, device: torch.device) -> bool:
    return name == REFERENCE or (_status(name).usable and device.type in load(name).AUTOMATIC)


def _problem(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend cannot serve this device and dtype, or ``None`` if it can."""
    if name == REFERENCE:
        return None
    status = _status(name)
    if not status.usable:
        return status.reason
    if device.type not in status.devices:
        return f"serves {' and '.join(status.devices)} only" + (f" ({status.reason})" if status.reason else "")
    return load(name).refusal(device, dtype)


def _refusal(message: str) -> str:
    lines = [f"{message}. Backends on this machine:"]
    for status in available().values():
        state = f"usable on {', '.join(status.devices)}" if status.usable else "not usable"
        details = "; ".join(part for part in (status.reason, status.remedy) if part)
        lines.append(f"  {status.name}: {state}" + (f" ({details})" if details else ""))
    return "\n".join(lines)
