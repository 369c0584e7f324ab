"""Ahead-of-time compilation of every kernel with every shipped configuration, for a GPU that need not be there.

It tells what each kernel costs on a card before one is at hand: registers, stack (where spilled registers go) and
shared memory, as the assembler reports them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import configs
from .combine import combine_constants, combine_kernel
from .configs import PRECISIONS, Tile
from .experts import ROUND_BLOCK, grouped_product_kernel, up_kernel
from .experts_backward import grad_weight_kernel, swiglu_backward_kernel, swiglu_constants
from .registry import INTERPRETED
from .route import route_constants, route_kernel
from .route_backward import (
    grad_input_constants,
    grad_input_kernel,
    grad_router_constants,
    grad_router_kernel,
    sums_constants,
    sums_kernel,
)
from .select import FILL, MAX_CHUNKS, count_kernel, scatter_kernel, select_backward_kernel, selection_constants
from .tiles import round_kernel

DIM, EXPERT_DIM, NUM_EXPERTS = 768, 1024, 8
_ELEMENT = {"half": "bf16", "tf32": "fp32", "ieee": "fp32"}
_HALF_SUMS = ", half sums"
_INT64 = ("token_idx_ptr", "offsets_ptr", "slots_ptr", "counts_ptr", "overflow_ptr")
_FLOAT32 = (
    "gates_ptr", "logits_ptr", "bias_ptr", "router_offset_ptr", "mean_ptr", "rstd_ptr",
    "grad_gates_ptr", "grad_logits_ptr", "added_ptr", "grad_scale_ptr", "grad_shift_ptr", "grad_router_weight_ptr",
    "grad_router_offset_ptr", "grad_scale_chunks_ptr", "grad_shift_chunks_ptr", "grad_router_weight_chunks_ptr",
)  # fmt: skip


@dataclass(frozen=True)
class Specimen:
    """One kernel as a launch would specialise it."""

    name: str
    kernel: Any = field(compare=False)
    element: str
    constants: dict[str, Any] = field(compare=False)
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Resources:
    """What the assembler reports for a kernel: per thread, and per block in bytes."""

    registers: int
    stack: int
    shared: int
    threads: int

    def blocks_per_multiprocessor(self, shared_available: int, threads_available: int) -> int:
        """How many blocks fit a multiprocessor with 65,536 registers at once."""
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = 65536 // (per_warp * self.threads // 32)
        by_shared = shared_available // (self.shared + 1024)
        return min(by_registers, by_shared, threads_available // self.threads, 16)


def grouped_specimens(
    kernel: str, precision: str, tile: Tile, dim: int = DIM, expert_dim: int = EXPERT_DIM
) -> list[Specimen]:
    """The specialisations of a grouped product with this tile, as training and inference launch it."""
    common: dict[str, Any] = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    common["PRECISION"] = "ieee" if precision == "ieee" else "tf32"
    rowwise = {"NUM_EXPERTS": NUM_EXPERTS, "PADDED_EXPERTS": NUM_EXPERTS}
    variants: list[tuple[str, Any, dict[str, Any]]]
    if kernel == "up":
        sizes = {"DIM": dim, "EXPERT_DIM": expert_dim, "SAVE_ACTIVATION": True, "ROUND": precision == "tf32"}
        variants = [
            ("", up_kernel, {**sizes, "SAVE_H": True, "HALF_SUMS": False}),
            (" inference", up_kernel, {**sizes, "SAVE_H": False, "HALF_SUMS": False}),
            (_HALF_SUMS, up_kernel, {**sizes, "SAVE_H": False, "HALF_SUMS": True}),
        ]
    elif kernel != "grad_weight":
        inner, outer = {
            "down": (expert_dim, dim),
            "grad_hidden": (dim, expert_dim),
            "grad_pairs": (2 * expert_dim, dim),
        }[kernel]
        flags = {"INNER": inner, "OUTER": outer, "TRANSPOSED": kernel != "down", "GATHER": kernel == "grad_hidden"}
        variants = [("", grouped_product_kernel, {**flags, "HALF_SUMS": False})]
        if kernel == "down":
            variants.append((_HALF_SUMS, grouped_product_kernel, {**flags, "HALF_SUMS": True}))
    else:
        rowwise = {}
        up = {"HEIGHT": 2 * expert_dim, "WIDTH": dim, "GATHER_LEFT": False, "GATHER_RIGHT": True}
        down = {"HEIGHT": dim, "WIDTH": expert_dim, "GATHER_LEFT": True, "GATHER_RIGHT": False}
        variants = [(" up", grad_weight_kernel, up), (" down", grad_weight_kernel, down)]
    return [
        Specimen(
            f"{kernel}{suffix}", function, "fp16" if suffix == _HALF_SUMS else _ELEMENT[precision],
            {**common, **rowwise, **flags}, tile.num_warps, tile.num_stages,
        )
        for suffix, function, flags in variants
        if precision == "half" or suffix != _HALF_SUMS
    ]  # fmt: skip


def tokenwise_specimens(element: str) -> list[Specimen]:
    """The kernels that pass over tokens or pairs, whose blocks are the same on every card."""
    norm = {"NORMALISE": True, "HAS_SCALE": True}
    wide = element == "fp32"
    selection: dict[str, Any] = {**selection_constants(NUM_EXPERTS), "VALID": "pair", "HAS_BIAS": True}
    sums = {"HAS_OFFSET": True, "HAS_SCALE": True, "HAS_WEIGHT": True}
    found: list[tuple[str, Any, dict[str, Any]]] = [
        ("route", route_kernel, {**route_constants(DIM, NUM_EXPERTS), **norm, "HAS_OFFSET": True}),
        ("route grad_input", grad_input_kernel, {**grad_input_constants(DIM, NUM_EXPERTS), **norm}),
        ("route grad_router", grad_router_kernel, grad_router_constants(DIM, NUM_EXPERTS)),
        ("swiglu_backward", swiglu_backward_kernel, {**swiglu_constants(EXPERT_DIM, NUM_EXPERTS), "ROUND": wide}),
        ("combine", combine_kernel, {**combine_constants(DIM, NUM_EXPERTS), "HAS_GATES": True}),
    ]
    if wide:
        found += [
            ("round", round_kernel, {"BLOCK": ROUND_BLOCK}),
            ("select count", count_kernel, selection),
            ("select scatter", scatter_kernel, {**selection, "MAX_CHUNKS": MAX_CHUNKS, "FILL": FILL}),
            ("select backward", select_backward_kernel, {**selection_constants(NUM_EXPERTS), "HAS_ADDED": True}),
            ("route sums", sums_kernel, {**sums_constants(DIM, NUM_EXPERTS), **sums}),
        ]
    return [
        Specimen(name, kernel, element, constants, num_warps=constants.pop("num_warps", 4))
        for name, kernel, constants in found
    ]


def specimens(architecture: int) -> Iterator[tuple[str, Specimen]]:
    """Every kernel with every configuration shipped for this architecture, each once, with the precision it is for."""
    for element in ("bf16", "fp32"):
        for specimen in tokenwise_specimens(element):
            yield ("half" if element == "bf16" else "ieee"), specimen
    for precision in PRECISIONS:
        chosen = {
            (key.kernel, tile) for key, tile in configs.shipped(architecture).items() if key.precision == precision
        }
        for kernel, tile in sorted(chosen, key=lambda pair: (pair[0], str(pair[1]))):
            for specimen in grouped_specimens(kernel, precision, tile):
                yield precision, specimen


def compile_numbered(job: tuple[int, int]) -> Resources:
    """``compile_specimen`` of (architecture, place in ``specimens``), which a pool of processes can pass around."""
    architecture, index = job
    return compile_specimen(list(specimens(architecture))[index][1], architecture)


def compile_specimen(specimen: Specimen, architecture: int) -> Resources:
    """Compile for ``architecture`` (86 for sm_86) and read the assembler's report.

    Raises:
        RuntimeError: in the interpreter, which compiles nothing, or if the report can't be read.
    """
    kernel = specimen.kernel
    if INTERPRETED:
        raise RuntimeError("ahead-of-time compilation needs Triton's compiler: unset TRITON_INTERPRET")
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in specimen.constants:
            signature[name] = "constexpr"
            constants[(index,)] = specimen.constants[name]
            continue
        signature[name] = _type_of(name, specimen.element)
        if name.endswith("_ptr"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": specimen.num_warps, "num_stages": specimen.num_stages, "enable_fp_fusion": True},
    )
    registers, stack = _assembler_report(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared, 32 * compiled.metadata.num_warps)


def _type_of(name: str, element: str) -> str:
    if not name.endswith("_ptr"):
        return "fp32" if name == "eps" else "i32"
    if name == "valid_ptr":
        return "*i1"
    if name == "chunk_counts_ptr":
        return "*i32"
    if name in _INT64:
        return "*i64"
    return "*fp32" if name in _FLOAT32 else f"*{element}"


def _assembler_report(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        report = subprocess.run([str(tool), "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage: expected a line REG:… STACK:… LOCAL:…, got {report!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
