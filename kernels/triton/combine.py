r"""Combine on the GPU: every token gathers and sums its experts' outputs, in expert order and float32, without atomics.

out[s] = residual[s] + sum over e with slots[s, e] >= 0 of gates[slots[s, e]] * expert_out[slots[s, e]]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .registry import check_usable, register

BLOCK_S = 4
BLOCK_D = 512

# expert_out  (P, D)      outputs of the pairs
# gates       (P,) f32    their weights
# slots       (S, E) i64  pair of a token and an expert, -1 = none
# residual    (S, D)      added once per token
# out         (S, D)


@triton.jit
def combine_kernel(
    expert_out_ptr,
    gates_ptr,
    slots_ptr,
    residual_ptr,
    out_ptr,
    num_tokens,
    dim,
    num_experts,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_GATES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_tokens)[:, None] & (cols < dim)[None, :]
    places = rows[:, None] * dim + cols[None, :]
    total = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
    for expert in range(num_experts):
        slot = tl.load(slots_ptr + rows * num_experts + expert, mask=rows < num_tokens, other=-1)
        taken = slot >= 0
        value = tl.load(
            expert_out_ptr + slot[:, None] * dim + cols[None, :], mask=taken[:, None] & (cols < dim)[None, :], other=0.0
        ).to(tl.float32)
        if HAS_GATES:
            value *= tl.load(gates_ptr + slot, mask=taken, other=0.0)[:, None]
        total += value
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=inside)


def _combine(expert_out: Tensor, gates: Tensor | None, slots: Tensor, residual: Tensor | None) -> Tensor:
    check_usable(expert_out)
    num_tokens, num_experts = slots.shape
    dim = expert_out.shape[1]
    if residual is not None and residual.shape != (num_tokens, dim):
        raise ValueError(f"residual: expected shape {(num_tokens, dim)}, got {tuple(residual.shape)}")
    out = torch.empty(num_tokens, dim, dtype=expert_out.dtype, device=expert_out.device)
    if out.numel():
        block_d = min(BLOCK_D, max(16, triton.next_power_of_2(dim)))
        combine_kernel[(triton.cdiv(num_tokens, BLOCK_S), triton.cdiv(dim, block_d))](
            expert_out.contiguous(),
            None if gates is None else gates.float().contiguous(),
            slots.contiguous(),
            None if residual is None else residual.contiguous(),
            out, num_tokens, dim, num_experts,
            BLOCK_S=BLOCK_S, BLOCK_D=block_d, HAS_GATES=gates is not None, HAS_RESIDUAL=residual is not None,
        )  # fmt: skip
    return out


def _combine_fake(expert_out: Tensor, gates: Tensor | None, slots: Tensor, residual: Tensor | None) -> Tensor:
    return expert_out.new_empty(slots.shape[0], expert_out.shape[1])


_combine_op = register(
    "combine(Tensor expert_out, Tensor? gates, Tensor slots, Tensor? residual) -> Tensor", _combine, _combine_fake
)


def combine(expert_out: Tensor, gates: Tensor | None, slots: Tensor, residual: Tensor | None = None) -> Tensor:
    """Per-token sums in the dtype of ``expert_out``, accumulated in float32.

    Args:
        expert_out: (P, D). gates: (P,), or ``None`` for ones. slots: (S, E) int64, -1 where not selected.
        residual: (S, D) added to the sums, or ``None``.

    Returns:
        (S, D).
    """
    return _combine_op(expert_out, gates, slots, residual)
