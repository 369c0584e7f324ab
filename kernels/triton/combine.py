r"""Combine on the GPU: every token gathers and sums its experts' outputs, in expert order and float32, without atomics.

out[s] = sum over e with slots[s, e] >= 0 of gates[slots[s, e]] * expert_out[slots[s, e]]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import expect
from .launch import cdiv, launch, token_constants
from .registry import on_its_device

ELEMENTS, ELEMENTS_PER_WARP = 1024, 1024

# expert_out  (P, D)      outputs of the pairs
# gates       (P,) f32    their weights
# slots       (S, E) i64  pair of a token and an expert, -1 = none
# out         (S, D)


@triton.jit(do_not_specialize=["num_tokens"])
def combine_kernel(
    expert_out_ptr,
    gates_ptr,
    slots_ptr,
    out_ptr,
    num_tokens,
    DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_GATES: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    experts = tl.arange(0, PADDED_EXPERTS)
    real = (rows < num_tokens)[:, None] & (experts < NUM_EXPERTS)[None, :]
    # every slot and gate at once: the loop then waits for outputs alone
    slots = tl.load(slots_ptr + rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :], mask=real, other=-1)
    if HAS_GATES:
        gates = tl.load(gates_ptr + slots, mask=slots >= 0, other=0.0)
    inside = (rows < num_tokens)[:, None] & (cols < DIM)[None, :]
    places = rows.to(tl.int64)[:, None] * DIM + cols[None, :]
    total = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for expert in range(NUM_EXPERTS):
        mine = (experts == expert)[None, :]
        slot = tl.sum(tl.where(mine, slots, 0), axis=1)
        value_ptrs = expert_out_ptr + slot[:, None] * DIM + cols[None, :]
        value = tl.load(value_ptrs, mask=(slot >= 0)[:, None] & (cols < DIM)[None, :], other=0.0).to(tl.float32)
        if HAS_GATES:
            value *= tl.sum(tl.where(mine, gates, 0.0), axis=1)[:, None]
        total += value
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=inside)


def combine_constants(dim: int, num_experts: int) -> dict[str, int]:
    """Sizes and blocks of the kernel's programs."""
    return token_constants(dim, num_experts, ELEMENTS, ELEMENTS_PER_WARP, widest=1024)


@on_its_device
def combine(expert_out: Tensor, gates: Tensor | None, slots: Tensor, out: Tensor | None = None) -> Tensor:
    """Per-token sums (S, D) in the dtype of ``expert_out``, accumulated in float32.

    Args:
        expert_out: (P, D).
        gates: (P,), or ``None`` for ones.
        slots: (S, E) int64, -1 where not selected.
        out: memory for the result, or ``None`` for new memory.
    """
    num_tokens, num_experts = slots.shape
    dim = expert_out.shape[1]
    expect("expert_out", expert_out, len(expert_out), dim)
    expect("gates", gates, len(expert_out))
    expect("slots", slots, num_tokens, num_experts, dtypes=(torch.int64,))
    if out is None:
        out = torch.empty(num_tokens, dim, dtype=expert_out.dtype, device=expert_out.device)
    expect("out", out, num_tokens, dim, dtypes=(expert_out.dtype,))
    expert_out, slots = expert_out.contiguous(), slots.contiguous()
    gates = None if gates is None else gates.float().contiguous()
    sizes = combine_constants(max(dim, 1), num_experts)
    launch(
        combine_kernel,
        (cdiv(num_tokens, sizes["BLOCK_S"]), cdiv(dim, sizes["BLOCK_D"]), 1),
        (expert_out, gates, slots, out, num_tokens),
        {**sizes, "HAS_GATES": gates is not None},
    )
    return out
