r"""Experts on the GPU, backward: gradients of the pairs, their gates and the weights, from h, indices and gates alone.

For each pair p of token s and expert e, with a = silu(h_gate) * h_up and da = W_down,e^T grad_out[s]:

    da[p]           = W_down,e^T grad_out[s]                                  kernel "grad_hidden"
    grad_gates[p]   = sum_f da[f] a[f]                                        kernel "swiglu_backward"
    grad_h[p]       = gates[p] da * (d a / d h)                                  "
    grad_pairs[p]   = W_gate_up,e^T grad_h[p]                                 kernel "grad_pairs"
    grad_w_down[e]  = sum over p of e:  grad_out[s] (gates[p] a)^T            kernel "grad_weight"
    grad_w_gate_up  = sum over p of e:  grad_h[p] tokens[s]^T                    "

The experts' outputs aren't needed. The activation's gradient is a pass of its own over whole pairs: in the product's
epilogue it took longer than both, and the gate's gradient came in parts. Weight gradients sum over a group in the order
of its pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import expect, expect_experts
from .experts import Shared, launch_product, launch_up
from .launch import blocks, cdiv, launch
from .registry import on_its_device
from .tiles import silu_and_gradient, stored
from .together import Spare

ELEMENTS, ELEMENTS_PER_WARP = 1024, 512

# grad_out    (S, D)        gradient of the block's output
# token_idx   (P,) i64      token of each pair
# offsets     (E + 1,) i64  pairs of each expert
# gates       (P,) f32
# w_down      (E, D, F)
# h           (P, 2F)       pre-activations, gate | up
# grad_h      (P, 2F)       their gradient
# weighted    (P, F)        da; in its place gates * a, for the gradient of w_down
# grad_gates  (P,) f32


@triton.jit
def swiglu_backward_kernel(
    h_ptr,
    gates_ptr,
    offsets_ptr,
    grad_h_ptr,
    weighted_ptr,
    grad_gates_ptr,
    EXPERT_DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    ROUND: tl.constexpr,
):
    num_pairs = tl.load(offsets_ptr + NUM_EXPERTS).to(tl.int32)
    if tl.program_id(0) * BLOCK_P >= num_pairs:
        return
    rows = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    starts = rows.to(tl.int64)[:, None] * EXPERT_DIM
    gates = tl.load(gates_ptr + rows, mask=rows < num_pairs, other=0.0)
    grad_gates = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, EXPERT_DIM, BLOCK_F):
        cols = start + tl.arange(0, BLOCK_F)[None, :]
        inside = (rows < num_pairs)[:, None] & (cols < EXPERT_DIM)
        grad = tl.load(weighted_ptr + starts + cols, mask=inside, other=0.0).to(tl.float32)
        h_gate = tl.load(h_ptr + 2 * starts + cols, mask=inside, other=0.0).to(tl.float32)
        h_up = tl.load(h_ptr + 2 * starts + EXPERT_DIM + cols, mask=inside, other=0.0).to(tl.float32)
        silu, silu_gradient = silu_and_gradient(h_gate)
        activation = silu * h_up
        grad_gates += tl.sum(grad * activation, axis=1)
        grad *= gates[:, None]
        dtype = grad_h_ptr.dtype.element_ty
        tl.store(weighted_ptr + starts + cols, stored(activation * gates[:, None], dtype, ROUND), mask=inside)
        tl.store(grad_h_ptr + 2 * starts + cols, stored(grad * h_up * silu_gradient, dtype, ROUND), mask=inside)
        tl.store(grad_h_ptr + 2 * starts + EXPERT_DIM + cols, stored(grad * silu, dtype, ROUND), mask=inside)
    tl.store(grad_gates_ptr + rows, grad_gates, mask=rows < num_pairs)


# left      (P, M)        or (S, M) gathered through token_idx with GATHER_LEFT
# right     (P, N)        or (S, N) gathered through token_idx with GATHER_RIGHT
# out       (E, M, N)     sum over the pairs of each expert of left^T right


@triton.jit
def grad_weight_kernel(
    left_ptr,
    right_ptr,
    token_idx_ptr,
    offsets_ptr,
    out_ptr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_n = tl.cdiv(WIDTH, BLOCK_N)
    blocks = tl.cdiv(HEIGHT, BLOCK_M) * blocks_n
    expert = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    ups = (block // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (block % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_ups = ups % HEIGHT
    safe_cols = cols % WIDTH
    first_row = tl.load(offsets_ptr + expert).to(tl.int32)
    end_row = tl.load(offsets_ptr + expert + 1).to(tl.int32)

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first_row, end_row, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        inside = rows < end_row
        pairs = rows.to(tl.int64)
        token = tl.load(token_idx_ptr + rows, mask=inside, other=0)
        left_rows = token if GATHER_LEFT else pairs
        right_rows = token if GATHER_RIGHT else pairs
        left = tl.load(left_ptr + left_rows[:, None] * HEIGHT + safe_ups[None, :], mask=inside[:, None], other=0.0)
        right = tl.load(right_ptr + right_rows[:, None] * WIDTH + safe_cols[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    out_ptrs = out_ptr + (expert.to(tl.int64) * HEIGHT + ups)[:, None] * WIDTH + cols[None, :]
    inside_out = (ups < HEIGHT)[:, None] & (cols < WIDTH)[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=inside_out)


def swiglu_constants(expert_dim: int, num_experts: int) -> dict[str, int]:
    """Sizes and blocks of the kernel's programs."""
    rows, columns, warps = blocks(expert_dim, ELEMENTS, ELEMENTS_PER_WARP, widest=1024)
    return {
        "EXPERT_DIM": expert_dim,
        "NUM_EXPERTS": num_experts,
        "BLOCK_P": rows,
        "BLOCK_F": columns,
        "num_warps": warps,
    }


def launch_grad_hidden(
    shared: Shared,
    grad_out: Tensor,
    token_idx: Tensor,
    offsets: Tensor,
    gates: Tensor,
    w_down: Tensor,
    h: Tensor,
    grad_h: Tensor,
    weighted: Tensor,
) -> Tensor:
    """``grad_gates`` (P,), and fill ``grad_h`` (P, 2F), which may be ``h``, and ``weighted`` (P, F), as operands."""
    grad_gates = torch.empty_like(gates)
    launch_product(shared, "grad_hidden", grad_out, offsets, w_down, weighted, True, token_idx)
    sizes = swiglu_constants(shared.expert_dim, shared.num_experts)
    launch(
        swiglu_backward_kernel,
        (cdiv(shared.num_pairs, sizes["BLOCK_P"]), 1, 1),
        (h, gates, offsets, grad_h, weighted, grad_gates),
        {**sizes, "ROUND": shared.rounds},
    )
    return grad_gates


def launch_grad_weight(
    shared: Shared, left: Tensor, right: Tensor, token_idx: Tensor, offsets: Tensor, out: Tensor, gather_left: bool
) -> None:
    """out (E, M, N), the sum over each expert's pairs of left^T right, one of them gathered through ``token_idx``."""
    chosen = shared.tile("grad_weight")
    height, width = left.shape[1], right.shape[1]
    launch(
        grad_weight_kernel,
        (shared.num_experts * cdiv(height, chosen.block_m) * cdiv(width, chosen.block_n), 1, 1),
        (left, right, token_idx, offsets, out),
        {
            "HEIGHT": height, "WIDTH": width, **shared.blocks(chosen),
            "GATHER_LEFT": gather_left, "GATHER_RIGHT": not gather_left,
        },
    )  # fmt: skip


@on_its_device
def experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
    needed: tuple[bool, bool, bool] = (True, True, True),
    spare: tuple[Spare | None, Tensor | None] = (None, None),
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``experts_forward`` followed by ``combine``, before the sum over each token's experts.

    Args:
        grad_out: (S, D) gradient of the combined output.
        tokens, token_idx, expert_offsets, w_gate_up, w_down: as in ``experts_forward``.
        gates: (P,).
        h: (P, 2F) as saved, or ``None`` to compute it again.
        needed: whether the pairs' tokens, w_gate_up and w_down get a gradient; what does not is ``None``.
        spare: memory that may be written over once ``tokens`` is read no more, such as its own, for ``grad_pairs``; and
            ``h`` where it may be written over, and then is.

    Returns:
        ``grad_pairs`` (P, D), to be combined with ``gates=None`` for the gradient of ``tokens``; ``grad_gates`` (P,)
        float32; ``grad_w_gate_up`` (E, 2F, D); ``grad_w_down`` (E, D, F), zeros for an expert without pairs.
    """
    num_pairs = token_idx.shape[0]
    expect_experts(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    expect("grad_out", grad_out, *tokens.shape)
    expect("gates", gates, num_pairs)
    expect("h", h, num_pairs, w_gate_up.shape[1], dtypes=(tokens.dtype,))
    spare_pairs, spare_h = spare
    shared = Shared(tokens, num_pairs, w_down)
    grad_out, gates = grad_out.to(tokens.dtype), gates.float().contiguous()
    grad_out, tokens, w_gate_up, w_down = map(shared.operand, (grad_out, tokens, w_gate_up, w_down))
    if h is None:
        h = spare_h = tokens.new_empty(num_pairs, 2 * shared.expert_dim)
        launch_up(shared, tokens, token_idx, expert_offsets, w_gate_up, h, None)
    h = h.contiguous()
    grad_h = h if h is spare_h else torch.empty_like(h)
    grad_pairs = grad_w_gate_up = grad_w_down = None
    if needed[1]:
        grad_w_gate_up = torch.empty_like(w_gate_up)
    # until it is written, the memory of the largest gradient holds what the other one is made of
    weighted = Spare(grad_w_gate_up).new(h, num_pairs, shared.expert_dim)
    grad_gates = launch_grad_hidden(
        shared, grad_out, token_idx, expert_offsets, gates, w_down, h, grad_h, weighted
    )  # fmt: skip
    if needed[2]:
        grad_w_down = torch.empty_like(w_down)
        launch_grad_weight(shared, grad_out, weighted, token_idx, expert_offsets, grad_w_down, True)
    if grad_w_gate_up is not None:
        launch_grad_weight(shared, grad_h, tokens, token_idx, expert_offsets, grad_w_gate_up, False)
    if needed[0]:
        grad_pairs = (spare_pairs or Spare()).new(tokens, num_pairs, shared.dim)
        launch_product(shared, "grad_pairs", grad_h, expert_offsets, w_gate_up, grad_pairs, True)
    return grad_pairs, grad_gates, grad_w_gate_up, grad_w_down
