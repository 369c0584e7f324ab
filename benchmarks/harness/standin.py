"""A stand-in for a GPU and its driver: Triton's kernels are neither compiled nor run, their launches are recorded.

So the host's part of a call can be timed and looked at without a GPU. Tensors lie on the CPU; what kernels would have
written is not there, but for the offsets that the exact mode reads. Launches come through Triton's launcher, of which
there is nothing here but the record, or through the CUDA driver, in whose place is ``standin.cpp``.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from intermoe import backends
from intermoe.kernels import triton as package
from intermoe.kernels.contract import Status
from intermoe.kernels.triton import arguments as checks
from intermoe.kernels.triton import driver as launcher
from intermoe.kernels.triton import experts, launch, plan, registry

ARCHITECTURE = 90
"""Compute capability that the stand-in says it has."""

SHARED = 1000
"""Bytes of shared memory that it says kernel number 0 takes; the next ones take one more each."""

_SCRATCH = 2
"""Parameters that Triton adds to every kernel."""


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name, its grid, and its arguments and constants by name."""

    name: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    threads: int
    shared: int
    together: bool
    """through the CUDA driver, with the others of its plan"""


class _Kernel(ctypes.Structure):
    """Of ``standin.cpp``."""

    _fields_ = (
        ("number", ctypes.c_int64),
        ("parameters", ctypes.c_int64),
        ("widths", ctypes.c_int64 * 64),
        ("filled", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("values", ctypes.c_int64 * 65),
    )


class Driver:
    """What was launched so far, while ``recording``; ``pairs`` is what a selection in the exact mode finds."""

    def __init__(self, pairs: int = 0, library: Any = None) -> None:
        self._launches: list[Launch] = []
        self._compiled: list[_Compiled] = []
        self._recording, self._library = True, library
        self.pairs = pairs
        if library is not None:
            library.standin_record(1)

    @property
    def recording(self) -> bool:
        return self._recording

    @recording.setter
    def recording(self, on: bool) -> None:
        self._take()
        self._recording = on
        if self._library is not None:
            self._library.standin_record(int(on))

    @property
    def pairs(self) -> int:
        return self._pairs

    @pairs.setter
    def pairs(self, pairs: int) -> None:
        self._pairs = pairs
        for compiled in self._compiled:
            compiled.find(pairs)

    @property
    def launches(self) -> list[Launch]:
        """In their order; clear it to forget."""
        self._take()
        return self._launches

    def compile(self, kernel: Any, grid: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> _Compiled:
        compiled = _Compiled(self, len(self._compiled), kernel, arguments, constants)
        self._compiled.append(compiled)
        compiled.find(self.pairs)
        compiled[grid](*arguments)
        return compiled

    def note(self, launch: Launch) -> None:
        """A launch through Triton's launcher."""
        if self.recording:
            self.launches.append(launch)

    def _take(self) -> None:
        """What the library has recorded meanwhile."""
        if self._library is None:
            return
        numbers = self._library.standin_log()[: self._library.standin_size()]
        place = 0
        while place < len(numbers):
            number, x, y, z, threads, shared, stream, extra, count = numbers[place : place + 9]
            if stream or extra:
                raise RuntimeError(f"stream, extra: expected 0 and 0, got {stream} and {extra}")
            values = numbers[place + 9 : place + 9 + count]
            place += 9 + count
            self._launches.append(self._compiled[number].told((x, y, z), threads, shared, values))
        self._library.standin_record(int(self._recording))


class _Compiled:
    """As much of Triton's compiled kernel as a launch reads."""

    def __init__(
        self, driver: Driver, number: int, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        self.driver, self.name, self.names, self.constants = driver, kernel.fn.__name__, kernel.arg_names, constants
        self.given = [name for name, one in zip(self.names, arguments, strict=False) if one is not None]
        self.kinds = [_kind(one) for one in arguments if one is not None]
        self.absent = {name: None for name, one in zip(self.names, arguments, strict=False) if one is None}
        self.metadata = SimpleNamespace(num_warps=constants.get("num_warps", 4), shared=SHARED + number, num_ctas=1)
        kinds = [*self.kinds, *["u64"] * _SCRATCH]
        lines = ",\n".join(f"\t.param .{kind} {self.name}_param_{i}" for i, kind in enumerate(kinds))
        threads = 32 * self.metadata.num_warps
        self.asm = {"ptx": f".visible .entry {self.name}(\n{lines}\n)\n.reqntid {threads}\n"}
        self._kernel = _Kernel(number, len(kinds), filled=-1)
        for i, kind in enumerate(kinds):
            self._kernel.widths[i] = 8 if kind.endswith("64") else 4
        self.function = ctypes.addressof(self._kernel)

    def find(self, pairs: int) -> None:
        """Where this is the kernel that the exact mode waits for: the offsets that it writes."""
        if self.name != "scatter_kernel" or self.constants["FILL"]:
            return
        experts = self.constants["NUM_EXPERTS"]
        self._kernel.filled, self._kernel.count = self.given.index("offsets_ptr"), experts + 1
        for e in range(experts + 1):
            self._kernel.values[e] = pairs * e // experts

    def told(self, grid: tuple[int, int, int], threads: int, shared: int, values: list[int]) -> Launch:
        """A launch that the library recorded; the scratch memory there is must be none."""
        if any(values[len(self.kinds) :]):
            raise RuntimeError(f"{self.name}: expected no scratch memory, got {values[len(self.kinds) :]}")
        read = [
            struct.unpack("<f", struct.pack("<q", value)[:4])[0] if kind == "f32" else value
            for value, kind in zip(values, self.kinds, strict=False)
        ]
        named = dict(zip(self.given, read, strict=True)) | self.absent | self.constants
        return Launch(self.name, grid, named, threads, shared, True)

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def start(*arguments: Any) -> None:
            if self._kernel.filled >= 0:
                offsets = arguments[self.names.index("offsets_ptr")]
                address = offsets.data_ptr() if isinstance(offsets, Tensor) else offsets
                ctypes.memmove(address, self._kernel.values, 8 * self._kernel.count)
            named = dict(zip(self.names, arguments, strict=False)) | self.constants
            named = {name: _stored(value) for name, value in named.items()}
            self.driver.note(Launch(self.name, grid, named, 32 * self.metadata.num_warps, self.metadata.shared, False))

        return start


def _kind(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return "u64"
    if isinstance(argument, float):
        return "f32"
    return "u32" if argument < 2**31 else "u64"


def _stored(value: Any) -> Any:
    """A float as a kernel gets it."""
    return struct.unpack("<f", struct.pack("<f", value))[0] if isinstance(value, float) else value


@functools.cache
def library() -> Path | None:
    """The stand-in for the driver's library, compiled once a process; ``None`` where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="intermoe-standin-")
    weakref.finalize(library, shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "libstandin.so")
    source = Path(__file__).with_name("standin.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


def opened() -> ctypes.CDLL:
    """The stand-in for the driver's library, with its results declared."""
    loaded = ctypes.CDLL(str(library()))
    loaded.standin_size.restype = ctypes.c_int64
    loaded.standin_log.restype = ctypes.POINTER(ctypes.c_int64)
    return loaded


def answer(code: int) -> None:
    """What the driver answers to launches from now on; 0 is success."""
    ctypes.c_int.in_dll(opened(), "standin_answer").value = code


@contextmanager
def stand_in(pairs: int = 0, together: bool = True) -> Iterator[Driver]:
    """Within, the Triton backend serves CPU tensors, through a driver that only records.

    ``together``: launches of a plan through the driver's library, where there is a compiler for its stand-in.
    """
    path = library() if together else None
    driver = Driver(pairs, None if path is None else opened())
    usable = Status(registry.NAME, True, ("cpu",), "a stand-in for a GPU: nothing is computed")
    with ExitStack() as stack:
        for target, name, value in (
            (package, "status", lambda: usable),
            (package, "refusal", lambda device, dtype: None),
            (registry, "unusable_reason", lambda device, dtype: None),
            (checks, "INTERPRETED", False),
            (launch, "INTERPRETED", False),
            (launch, "_compiled", {}),
            (plan, "INTERPRETED", False),
            (plan, "_plans", {}),
            (launch, "compile_and_start", driver.compile),
            (launcher, "LIBRARY", "none: a stand-in" if path is None else str(path)),
            (experts, "architecture_of", lambda device: ARCHITECTURE),
        ):
            stack.enter_context(patch.object(target, name, value))
        backends._serving.cache_clear()
        try:
            yield driver
        finally:
            backends._serving.cache_clear()
