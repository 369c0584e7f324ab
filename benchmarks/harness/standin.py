"""A stand-in for a GPU and its driver: Triton's kernels are neither compiled nor run, their launches are recorded.

So the host's part of a call can be timed and looked at without a GPU. Tensors lie on the CPU; what kernels would have
written is not there, but for the offsets that the exact mode reads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch import Tensor

from intermoe import backends
from intermoe.kernels import triton as package
from intermoe.kernels.contract import Status
from intermoe.kernels.triton import arguments as checks
from intermoe.kernels.triton import experts, launch, plan, registry

ARCHITECTURE = 90
"""Compute capability that the stand-in says it has."""


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name, its grid, and its arguments and constants by name."""

    name: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]


@dataclass
class Driver:
    """What was launched so far, while ``recording``; ``pairs`` is what a selection in the exact mode finds."""

    pairs: int = 0
    recording: bool = True
    launches: list[Launch] = field(default_factory=list)

    def compile(self, kernel: Any, grid: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> _Compiled:
        names = kernel.arg_names
        compiled = _Compiled(self, kernel.fn.__name__, names, constants)
        compiled[grid](*arguments)
        return compiled


@dataclass(frozen=True)
class _Compiled:
    driver: Driver
    name: str
    names: list[str]
    constants: dict[str, Any]

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        driver = self.driver

        def start(*arguments: Any) -> None:
            if self.name == "scatter_kernel" and not self.constants["FILL"]:  # the exact mode
                offsets = arguments[self.names.index("offsets_ptr")]
                _fill_offsets(offsets, driver.pairs, self.constants["NUM_EXPERTS"])
            if driver.recording:
                named = dict(zip(self.names, arguments, strict=False)) | self.constants
                driver.launches.append(Launch(self.name, grid, named))

        return start


def _fill_offsets(offsets: Tensor | int, pairs: int, num_experts: int) -> None:
    address = offsets.data_ptr() if isinstance(offsets, Tensor) else offsets
    numbers = (ctypes.c_int64 * (num_experts + 1)).from_address(address)
    numbers[:] = [pairs * e // num_experts for e in range(num_experts + 1)]


@contextmanager
def stand_in(pairs: int = 0) -> Iterator[Driver]:
    """Within, the Triton backend serves CPU tensors, through a driver that only records."""
    driver = Driver(pairs)
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
            (experts, "architecture_of", lambda device: ARCHITECTURE),
        ):
            stack.enter_context(patch.object(target, name, value))
        backends._serving.cache_clear()
        try:
            yield driver
        finally:
            backends._serving.cache_clear()
