r"""Experts on the GPU, forward: two grouped products with the gather in one's prologue, SwiGLU in its epilogue.

    h[p]          = W_gate_up,e tokens[token_idx[p]]                          kernel "up"
    expert_out[p] = W_down,e ( silu(h_gate[p]) * h_up[p] )                    kernel "down"

The launch covers the most row tiles there could be; each program finds its expert and rows from ``expert_offsets`` on
the device and leaves if there are none. Tiles of one expert are neighbours, columns fastest: a wave of programs shares
one expert's weights and few rows in the L2 cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import expect_experts
from .configs import Tile, architecture_of, precision_of, size_class, tile
from .launch import cdiv, launch, power_of_2
from .registry import on_its_device
from .tiles import round_kernel, silu_and_gradient, stored, tile_rows

ROUND_BLOCK = 4096

# tokens      (S, D)        normalised tokens
# token_idx   (P,) i64      token of each pair
# offsets     (E + 1,) i64  pairs of each expert
# w_gate_up   (E, 2F, D)    rows 0..F gate, F..2F up
# w_down      (E, D, F)
# h           (P, 2F)       W_gate_up t, before the activation, for the backward
# activation  (P, F)        silu(h_gate) * h_up
# expert_out  (P, D)


@triton.jit
def up_kernel(
    tokens_ptr,
    token_idx_ptr,
    offsets_ptr,
    w_gate_up_ptr,
    h_ptr,
    activation_ptr,
    DIM: tl.constexpr,
    EXPERT_DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SAVE_H: tl.constexpr,
    SAVE_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    HALF_SUMS: tl.constexpr,
):
    blocks_n = tl.cdiv(EXPERT_DIM, BLOCK_N)
    pid = tl.program_id(0)
    expert, first_row, end_row = tile_rows(offsets_ptr, pid // blocks_n, NUM_EXPERTS, PADDED_EXPERTS, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = (pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    # rows and columns past the end repeat valid ones and are never stored: the loop needs no mask for them
    token = tl.load(token_idx_ptr + tl.minimum(rows, end_row - 1))
    safe_cols = cols % EXPERT_DIM

    x_ptrs = tokens_ptr + token[:, None] * DIM + lanes[None, :]
    gate_rows = expert.to(tl.int64) * 2 * EXPERT_DIM + safe_cols
    gate_ptrs = w_gate_up_ptr + gate_rows[None, :] * DIM + lanes[:, None]
    up_ptrs = w_gate_up_ptr + (gate_rows + EXPERT_DIM)[None, :] * DIM + lanes[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, DIM, BLOCK_K):
        if DIM % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w_gate = tl.load(gate_ptrs)
            w_up = tl.load(up_ptrs)
        else:
            inside = k + lanes < DIM
            x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
            w_gate = tl.load(gate_ptrs, mask=inside[:, None], other=0.0)
            w_up = tl.load(up_ptrs, mask=inside[:, None], other=0.0)
        if HALF_SUMS:
            gate += tl.dot(x, w_gate, out_dtype=tl.float16).to(tl.float32)
            up += tl.dot(x, w_up, out_dtype=tl.float16).to(tl.float32)
        else:
            gate = tl.dot(x, w_gate, gate, input_precision=PRECISION)
            up = tl.dot(x, w_up, up, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        gate_ptrs += BLOCK_K
        up_ptrs += BLOCK_K

    # one 64-bit base per tile and 32-bit offsets within it: half the address registers
    inside = (rows < end_row)[:, None] & (cols < EXPERT_DIM)[None, :]
    within = tl.arange(0, BLOCK_M)[:, None]
    tile_start = first_row.to(tl.int64) * EXPERT_DIM
    if SAVE_H:
        h_ptrs = h_ptr + 2 * tile_start + (within * (2 * EXPERT_DIM) + cols[None, :])
        tl.store(h_ptrs, gate.to(h_ptr.dtype.element_ty), mask=inside)
        tl.store(h_ptrs + EXPERT_DIM, up.to(h_ptr.dtype.element_ty), mask=inside)
    if SAVE_ACTIVATION:
        activation = silu_and_gradient(gate)[0] * up
        places = within * EXPERT_DIM + cols[None, :]
        activation = stored(activation, activation_ptr.dtype.element_ty, ROUND)
        tl.store(activation_ptr + tile_start + places, activation, mask=inside)


# x       (P, K)        rows of the pairs, grouped by expert; or (S, K) gathered through token_idx with GATHER
# weight  (E, N, K)     or (E, K, N) with TRANSPOSED, one matrix per expert
# out     (P, N)        x W^T, or x W with TRANSPOSED


@triton.jit
def grouped_product_kernel(
    x_ptr,
    token_idx_ptr,
    offsets_ptr,
    weight_ptr,
    out_ptr,
    INNER: tl.constexpr,
    OUTER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATHER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF_SUMS: tl.constexpr,
):
    blocks_n = tl.cdiv(OUTER, BLOCK_N)
    pid = tl.program_id(0)
    expert, first_row, end_row = tile_rows(offsets_ptr, pid // blocks_n, NUM_EXPERTS, PADDED_EXPERTS, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = (pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    safe_rows = tl.minimum(rows, end_row - 1).to(tl.int64)
    if GATHER:
        safe_rows = tl.load(token_idx_ptr + safe_rows)
    safe_cols = cols % OUTER

    x_ptrs = x_ptr + safe_rows[:, None] * INNER + lanes[None, :]
    weight_ptr += expert.to(tl.int64) * INNER * OUTER
    if TRANSPOSED:
        w_ptrs = weight_ptr + lanes.to(tl.int64)[:, None] * OUTER + safe_cols[None, :]
    else:
        w_ptrs = weight_ptr + safe_cols.to(tl.int64)[None, :] * INNER + lanes[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, INNER, BLOCK_K):
        if INNER % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            inside = k + lanes < INNER
            x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
        if HALF_SUMS:
            total += tl.dot(x, w, out_dtype=tl.float16).to(tl.float32)
        else:
            total = tl.dot(x, w, total, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        if TRANSPOSED:
            w_ptrs += BLOCK_K * OUTER
        else:
            w_ptrs += BLOCK_K
    places = tl.arange(0, BLOCK_M)[:, None] * OUTER + cols[None, :]
    inside = (rows < end_row)[:, None] & (cols < OUTER)[None, :]
    tl.store(out_ptr + first_row.to(tl.int64) * OUTER + places, total.to(out_ptr.dtype.element_ty), mask=inside)


class Shared:
    """What the launches of one call share: the sizes, the precision, and each kernel's tile."""

    def __init__(self, tokens: Tensor, num_pairs: int, w_down: Tensor) -> None:
        self.num_tokens, self.dim = tokens.shape
        self.num_experts, _, self.expert_dim = w_down.shape
        self.num_pairs = num_pairs
        self.precision = precision_of(tokens.dtype)
        self.architecture = architecture_of(tokens.device)
        self.size = size_class(self.num_tokens, self.num_experts)

    def tile(self, kernel: str) -> Tile:
        return tile(self.architecture, kernel, self.precision, self.size)

    def row_tiles(self, chosen: Tile) -> int:
        """The most row tiles that the pairs can make, whatever the sizes of the groups."""
        return min(self.num_pairs, cdiv(self.num_pairs, chosen.block_m) + self.num_experts)

    @property
    def rounds(self) -> bool:
        """Whether products are of TF32, for which what they read is rounded first."""
        return self.precision == "tf32"

    def operand(self, x: Tensor) -> Tensor:
        """A tensor as the products read it: contiguous, rounded for TF32."""
        x = x.contiguous()
        if not self.rounds:
            return x
        rounded = torch.empty_like(x)
        launch(round_kernel, (cdiv(x.numel(), ROUND_BLOCK), 1, 1), (x, rounded, x.numel()), {"BLOCK": ROUND_BLOCK})
        return rounded

    def rowwise(self) -> dict[str, int]:
        """Compile-time arguments that say how rows belong to experts."""
        return {"NUM_EXPERTS": self.num_experts, "PADDED_EXPERTS": power_of_2(max(2, self.num_experts))}

    def blocks(self, chosen: Tile) -> dict[str, Any]:
        """Compile-time arguments and options of the tile."""
        return {
            "BLOCK_M": chosen.block_m,
            "BLOCK_N": chosen.block_n,
            "BLOCK_K": chosen.block_k,
            "PRECISION": "ieee" if self.precision == "ieee" else "tf32",
            "num_warps": chosen.num_warps,
            "num_stages": chosen.num_stages,
        }


def launch_up(
    shared: Shared,
    tokens: Tensor,
    token_idx: Tensor,
    offsets: Tensor,
    w_gate_up: Tensor,
    h: Tensor | None,
    activation: Tensor | None,
    half_sums: bool = False,
) -> None:
    """Fill ``h`` and ``activation``, as far as given; ``activation`` as an operand."""
    chosen = shared.tile("up")
    launch(
        up_kernel,
        (shared.row_tiles(chosen) * cdiv(shared.expert_dim, chosen.block_n), 1, 1),
        (tokens, token_idx, offsets, w_gate_up, h, activation),
        {
            "DIM": shared.dim, "EXPERT_DIM": shared.expert_dim, **shared.rowwise(), **shared.blocks(chosen),
            "SAVE_H": h is not None, "SAVE_ACTIVATION": activation is not None,
            "ROUND": shared.rounds, "HALF_SUMS": half_sums,
        },
    )  # fmt: skip


def launch_product(
    shared: Shared,
    kernel: str,
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    out: Tensor,
    transposed: bool,
    token_idx: Tensor | None = None,
    half_sums: bool = False,
) -> None:
    """out[p] = weight[e] x[p], or weight[e]^T x[p] where ``transposed``; of x[token_idx[p]] where that is given."""
    chosen = shared.tile(kernel)
    inner, outer = x.shape[1], out.shape[1]
    launch(
        grouped_product_kernel,
        (shared.row_tiles(chosen) * cdiv(outer, chosen.block_n), 1, 1),
        (x, token_idx, offsets, weight, out),
        {
            "INNER": inner, "OUTER": outer, **shared.rowwise(), **shared.blocks(chosen),
            "GATHER": token_idx is not None, "TRANSPOSED": transposed, "HALF_SUMS": half_sums,
        },
    )  # fmt: skip


@on_its_device
def experts_forward(
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    save_h: bool = True,
    half_sums: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs of the selected pairs, not yet weighted by their gates.

    Args:
        tokens: (S, D).
        token_idx: (P,) int64.
        expert_offsets: (E + 1,) int64.
        w_gate_up: (E, 2F, D), rows 0..F gate, F..2F up.
        w_down: (E, D, F). Both in the dtype of ``tokens``.
        save_h: ``False`` for inference, or to compute ``h`` again in the backward: half of the memory, a third more
            time backward.
        half_sums: sum each step of a product in float16 (the steps in float32): twice the rate on GeForce cards,
            less accurate; float16 inference only.

    Returns:
        ``expert_out`` (P, D) and ``h`` (P, 2F), empty (0, 2F) without ``save_h``. Float32 products follow
        ``torch.get_float32_matmul_precision``.
    """
    expect_experts(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    if half_sums and tokens.dtype != torch.float16:
        raise TypeError(f"half_sums: expected float16 tokens and weights, got {tokens.dtype}")
    num_pairs = token_idx.shape[0]
    shared = Shared(tokens, num_pairs, w_down)
    tokens, w_gate_up, w_down = map(shared.operand, (tokens, w_gate_up, w_down))
    h = tokens.new_empty(num_pairs if save_h else 0, 2 * shared.expert_dim)
    activation = tokens.new_empty(num_pairs, shared.expert_dim)
    expert_out = tokens.new_empty(num_pairs, shared.dim)
    launch_up(shared, tokens, token_idx, expert_offsets, w_gate_up, h if save_h else None, activation, half_sums)
    launch_product(shared, "down", activation, expert_offsets, w_down, expert_out, False, half_sums=half_sums)
    return expert_out, h
