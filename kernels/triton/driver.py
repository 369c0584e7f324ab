"""All launches of a plan in one call: through the CUDA driver itself, by the native library (``csrc/launch.cpp``).

Triton's own launcher costs a call a few microseconds for each kernel. Here a plan becomes a list of numbers: the loaded
kernels, their grids, and where each of their parameters comes from. What a kernel takes is read in the code that Triton
compiled it to, and where that is anything else than known here, or a library is missing, plans go on through Triton's
launcher, one by one, and the log says so once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import re
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..native import library
from .registry import NAME

LIBRARY = "libcuda.so.1"
"""The CUDA driver's own."""

NO_CONTEXT = 201
"""What the driver answers in a thread that has not used the device yet: Triton's launcher then sets it up."""

_ENTRY = re.compile(r"\.entry\s+\w+\s*\(([^)]*)\)\s*(?:\.(?:reqntid|maxntid)\s+(\d+))?")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)")
_INTEGERS = {"u32", "s32", "b32", "u64", "s64", "b64"}

_log = logging.getLogger(__name__)

Source = tuple[bool, Any]
"""Whether an argument is a number (or ``None``, or memory that outlives all calls); it, or the number of its place."""


class Unknown(Exception):
    """A kernel, or a machine, that takes something else than is known here; it says what."""


class Program:
    """The launches as ``intermoe_launch`` reads them; ``stream`` tells the one that is current."""

    def __init__(self, numbers: list[int], bases: int, stream: Callable[[], int]) -> None:
        self._launch, self._driver = _opened(LIBRARY)
        self._memory = (ctypes.c_int64 * len(numbers))(*numbers)
        self._address = ctypes.addressof(self._memory)
        self._pack = struct.Struct(f"{bases}q").pack
        self._stream = stream

    def run(self, bases: list[int]) -> bool:
        """Whether all were started; nothing was where the thread has no context yet."""
        code = self._launch(self._driver, self._address, self._pack(*bases), self._stream())
        if code == 0:
            return True
        if code == NO_CONTEXT:
            return False
        message = library.load().intermoe_last_error().decode()
        raise RuntimeError(f"backend {NAME!r}: {message or f'the CUDA driver says {code}'}")


def program(
    launches: list[tuple[Any, list[Source]]], places: list[tuple[int, int]], bases: int, device: torch.device
) -> Program | None:
    """The launches, each with the sources of what its kernel is given, or ``None`` where that cannot be."""
    numbers = [len(launches), len(places)]
    for place in places:
        numbers += place
    constants: list[tuple[int, int]] = []
    try:
        for started, sources in launches:
            threads, shared, types = _needs(started.compiled)
            given = [source for source in sources if source != (True, None)]
            if len(types) < len(given) or set(types[len(given) :]) - {"u64"}:
                raise Unknown(f"a kernel of {len(given)} arguments and parameters {types}")
            numbers += [started.compiled.function, *started.grid, threads, shared, len(types)]
            for (is_number, value), declared in zip(given, types, strict=False):
                bits = _bits(value, declared) if is_number else _place(value, declared)
                if is_number:
                    constants.append((len(numbers), bits))
                numbers.append(bits)
            for _ in types[len(given) :]:  # scratch memory, of which these kernels have none
                constants.append((len(numbers), 0))
                numbers.append(0)
        for slot, bits in constants:
            numbers[slot] = -len(numbers)
            numbers.append(bits)
        return Program(numbers, bases, stream_of(device))
    except Unknown as reason:
        _tell(str(reason))
        return None


def _needs(compiled: Any) -> tuple[int, int, list[str]]:
    """Threads of a block, bytes of shared memory, and the declared types of the parameters."""
    metadata = compiled.metadata
    for name in ("launch_pdl", "launch_cooperative_grid", "global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, name, 0):
            raise Unknown(f"a kernel with {name}={getattr(metadata, name)}")
    if getattr(metadata, "num_ctas", 1) != 1:
        raise Unknown(f"a kernel with num_ctas={metadata.num_ctas}")
    entry = _ENTRY.search(compiled.asm["ptx"])
    if entry is None:
        raise Unknown("code without an entry that can be read")
    threads = 32 * metadata.num_warps
    if entry[2] is not None and int(entry[2]) != threads:
        raise Unknown(f"a kernel of {metadata.num_warps} warps and {entry[2]} threads")
    return threads, metadata.shared, _PARAMETER.findall(entry[1])


def _place(number: int, declared: str) -> int:
    if declared not in ("u64", "b64"):
        raise Unknown(f"a pointer for a parameter of type {declared}")
    return number


def _bits(value: Any, declared: str) -> int:
    """A number, or a pointer, as it lies in memory."""
    if isinstance(value, Tensor):
        return _place(value.data_ptr(), declared)  # pinned memory has one address for both sides
    if isinstance(value, float) and declared == "f32":
        return int.from_bytes(struct.pack("<f", value), "little")
    if isinstance(value, int) and declared in _INTEGERS:
        return value
    raise Unknown(f"{value!r} for a parameter of type {declared}")


def stream_of(device: torch.device) -> Callable[[], int]:
    """What tells the current stream of a device."""
    if device.type != "cuda":
        return lambda: 0
    return functools.partial(torch._C._cuda_getCurrentRawStream, device.index or 0)


@functools.cache
def _opened(name: str) -> tuple[Any, int]:
    try:
        library.load()
    except library.LibraryUnavailable as error:
        raise Unknown(str(error)) from error
    # PyDLL keeps the interpreter's lock, as the calls are shorter than giving it back and taking it again
    native = ctypes.PyDLL(str(library.library_path()))
    native.intermoe_open_driver.restype = ctypes.c_int64
    address = native.intermoe_open_driver(name.encode())
    if not address:
        raise Unknown(library.load().intermoe_last_error().decode())
    launch = native.intermoe_launch
    launch.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return launch, address


@functools.cache
def _tell(reason: str) -> None:
    """Once for each reason."""
    _log.warning("kernels are started one by one, which costs the host some microseconds for each: %s", reason)
