"""Launches that cost the host little, and the sizes they are made of.

Triton's launcher binds, specialises and looks up its kernel at every call, which takes longer than most kernels here
run. So sizes of tensors' rows are compile-time constants, counts are never specialised, and a compiled kernel is kept
by what is left to tell its specialisations apart: the device, the constants, each tensor's dtype and alignment, each
number's width.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from .plan import Started, record
from .registry import INTERPRETED

_TAKES_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """``kernel[grid](*arguments, **constants)`` on the current device and stream.

    Args:
        kernel: jitted with ``do_not_specialize`` for every number among its arguments; constants come last.
        grid: programs along each axis; nothing is launched where one is 0.
        arguments: tensors, ``None`` and numbers.
        constants: compile-time arguments and options.
    """
    if 0 in grid:
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    key = (id(kernel), *map(_kind, arguments), *constants.values())
    found = _compiled.get(key)
    if found is None:
        compiled = compile_and_start(kernel, grid, arguments, constants)
        names = kernel.arg_names[len(arguments) :] if _TAKES_CONSTANTS else ()
        found = _compiled[key] = compiled, tuple(constants[name] for name in names)
        record(Started(compiled, grid, (*arguments, *found[1]), len(arguments)))
    else:
        compiled, constant_arguments = found
        record(Started(compiled, grid, (*arguments, *constant_arguments), len(arguments)))
        compiled[grid](*arguments, *constant_arguments)


def compile_and_start(
    kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: dict[str, Any]
) -> Any:
    """Triton's compiled kernel, started once."""
    # the default of the fusion of products and sums depends on Triton's version, and with it the last bits
    return kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def _kind(argument: Tensor | float | None) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.get_device(), argument.data_ptr() % 16 == 0
    return argument if argument is None else (type(argument), argument >= 2**31)


def cdiv(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least ``least``, which is positive."""
    return 1 << (least - 1).bit_length()


def blocks(width: int, elements: int, per_warp: int, widest: int | None = None) -> tuple[int, int, int]:
    """Rows, columns and warps of a program that holds about ``elements`` of rows of ``width``.

    Rows are held whole, up to ``widest`` columns; ``per_warp`` is how many elements a warp gets.
    """
    columns = max(16, power_of_2(width))
    if widest is not None:
        columns = min(columns, widest)
    rows = min(16, max(1, elements // columns))
    return rows, columns, min(16, max(1, rows * columns // per_warp))


def token_constants(
    dim: int, num_experts: int, elements: int, per_warp: int, widest: int | None = None
) -> dict[str, int]:
    """Sizes and ``blocks`` of a kernel over tokens of width ``dim``, each with a number for every expert."""
    rows, columns, warps = blocks(dim, elements, per_warp, widest)
    return {
        "DIM": dim,
        "NUM_EXPERTS": num_experts,
        "PADDED_EXPERTS": power_of_2(max(2, num_experts)),
        "BLOCK_S": rows,
        "BLOCK_D": columns,
        "num_warps": warps,
    }
