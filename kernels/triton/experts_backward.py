r"""Experts on the GPU, backward: gradients of the pairs, their gates and the weights, from h, indices and gates alone.

For each pair p of token s and expert e, with a = silu(h_gate) * h_up and da = W_down,e^T grad_out[s]:

    grad_gates[p]   = sum_f da[f] a[f]                                        kernel "grad_hidden"
    grad_h[p]       = gates[p] da * (d a / d h)                                  "
    grad_pairs[p]   = W_gate_up,e^T grad_h[p]                                 kernel "grad_pairs"
    grad_w_down[e]  = sum over p of e:  grad_out[s] (gates[p] a)^T            kernel "grad_weight"
    grad_w_gate_up  = sum over p of e:  grad_h[p] tokens[s]^T                    "

The experts' outputs aren't needed: the gate's gradient falls out of the first product's epilogue, as one partial sum
per tile of columns, added in a fixed order. Weight gradients sum over a group in the order of its pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .experts import Launch, launch_product, launch_up
from .registry import check_usable, register
from .tiles import silu_and_gradient, tile_rows

# grad_out    (S, D)        gradient of the block's output
# token_idx   (P,) i64      token of each pair
# offsets     (E + 1,) i64  pairs of each expert
# gates       (P,) f32
# w_down      (E, D, F)
# h           (P, 2F)       pre-activations, gate | up
# grad_h      (P, 2F)       their gradient
# weighted    (P, F)        gates * a, for the gradient of w_down
# partials    (N, P) f32    sums of da * a over each of the N tiles of columns


@triton.jit
def grad_hidden_kernel(
    grad_out_ptr,
    token_idx_ptr,
    offsets_ptr,
    gates_ptr,
    w_down_ptr,
    h_ptr,
    grad_h_ptr,
    weighted_ptr,
    partials_ptr,
    num_pairs,
    dim,
    expert_dim,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_n = tl.cdiv(expert_dim, BLOCK_N)
    pid = tl.program_id(0)
    expert, first_row, end_row = tile_rows(offsets_ptr, pid // blocks_n, NUM_EXPERTS, PADDED_EXPERTS, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = (pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    token = tl.load(token_idx_ptr + tl.minimum(rows, end_row - 1))
    safe_cols = cols % expert_dim

    x_ptrs = grad_out_ptr + token[:, None] * dim + steps[None, :]
    w_rows = expert.to(tl.int64) * dim + steps
    w_ptrs = w_down_ptr + w_rows[:, None] * expert_dim + safe_cols[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, dim, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            inside = k + steps < dim
            x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
        product = tl.dot(x, w, product, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K * expert_dim

    # one 64-bit base per tile and 32-bit offsets within it: half the address registers
    within = tl.arange(0, BLOCK_M)
    inside = (rows < end_row)[:, None] & (cols < expert_dim)[None, :]
    tile_start = first_row.to(tl.int64) * expert_dim
    places = within[:, None] * expert_dim + cols[None, :]
    h_places = within[:, None] * (2 * expert_dim) + cols[None, :]
    h_ptr += 2 * tile_start
    grad_h_ptr += 2 * tile_start
    h_gate = tl.load(h_ptr + h_places, mask=inside, other=0.0).to(tl.float32)
    h_up = tl.load(h_ptr + expert_dim + h_places, mask=inside, other=0.0).to(tl.float32)
    gates = tl.load(gates_ptr + rows, mask=rows < end_row, other=0.0)
    silu, silu_gradient = silu_and_gradient(h_gate)
    activation = silu * h_up

    partial = tl.sum(product * activation, axis=1)  # outside, h and with it the activation is 0
    partial_ptrs = partials_ptr + (pid % blocks_n).to(tl.int64) * num_pairs + rows
    tl.store(partial_ptrs, partial, mask=rows < end_row)
    dtype = grad_h_ptr.dtype.element_ty
    product *= gates[:, None]
    tl.store(weighted_ptr + tile_start + places, (activation * gates[:, None]).to(dtype), mask=inside)
    tl.store(grad_h_ptr + expert_dim + h_places, (product * silu).to(dtype), mask=inside)
    tl.store(grad_h_ptr + h_places, (product * h_up * silu_gradient).to(dtype), mask=inside)


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
    height,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_n = tl.cdiv(width, BLOCK_N)
    blocks = tl.cdiv(height, BLOCK_M) * blocks_n
    expert = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    ups = (block // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (block % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_ups = ups % height
    safe_cols = cols % width
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
        left = tl.load(left_ptr + left_rows[:, None] * height + safe_ups[None, :], mask=inside[:, None], other=0.0)
        right = tl.load(right_ptr + right_rows[:, None] * width + safe_cols[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    out_ptrs = out_ptr + (expert.to(tl.int64) * height + ups)[:, None] * width + cols[None, :]
    inside_out = (ups < height)[:, None] & (cols < width)[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=inside_out)


def _launch_grad_hidden(
    launch: Launch,
    grad_out: Tensor,
    token_idx: Tensor,
    offsets: Tensor,
    gates: Tensor,
    w_down: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = launch.tile("grad_hidden")
    grad_h = torch.empty_like(h)
    weighted = h.new_empty(launch.num_pairs, launch.expert_dim)
    blocks_n = triton.cdiv(launch.expert_dim, chosen.block_n)
    partials = gates.new_empty(blocks_n, launch.num_pairs)
    grid = launch.row_tiles(chosen) * blocks_n
    if grid:
        grad_hidden_kernel[(grid,)](
            grad_out, token_idx, offsets, gates, w_down, h, grad_h, weighted, partials,
            launch.num_pairs, launch.dim, launch.expert_dim, **launch.constants(chosen, launch.dim),
        )  # fmt: skip
    return grad_h, weighted, partials.sum(dim=0)


def _launch_grad_weight(
    launch: Launch, left: Tensor, right: Tensor, token_idx: Tensor, offsets: Tensor, gather_left: bool
) -> Tensor:
    chosen = launch.tile("grad_weight")
    height, width = left.shape[1], right.shape[1]
    out = left.new_empty(launch.num_experts, height, width)
    grid = launch.num_experts * triton.cdiv(height, chosen.block_m) * triton.cdiv(width, chosen.block_n)
    grad_weight_kernel[(grid,)](
        left, right, token_idx, offsets, out, height, width,
        BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n, BLOCK_K=chosen.block_k,
        GATHER_LEFT=gather_left, GATHER_RIGHT=not gather_left, **launch.options(chosen),
    )  # fmt: skip
    return out


def _experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_usable(tokens)
    grad_out, gates = grad_out.to(tokens.dtype).contiguous(), gates.float().contiguous()
    tokens, w_gate_up, w_down = tokens.contiguous(), w_gate_up.contiguous(), w_down.contiguous()
    num_pairs = token_idx.shape[0]
    launch = Launch(tokens, num_pairs, w_down)
    if h is None:
        h = tokens.new_empty(num_pairs, 2 * launch.expert_dim)
        launch_up(launch, tokens, token_idx, expert_offsets, w_gate_up, h, None)
    h = h.contiguous()
    grad_h, weighted, grad_gates = _launch_grad_hidden(launch, grad_out, token_idx, expert_offsets, gates, w_down, h)
    grad_pairs = tokens.new_empty(num_pairs, launch.dim)
    launch_product(launch, "grad_pairs", grad_h, expert_offsets, w_gate_up, grad_pairs, True)
    grad_w_down = _launch_grad_weight(launch, grad_out, weighted, token_idx, expert_offsets, True)
    grad_w_gate_up = _launch_grad_weight(launch, grad_h, tokens, token_idx, expert_offsets, False)
    return grad_pairs, grad_gates, grad_w_gate_up, grad_w_down


def _experts_backward_fake(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_pairs = token_idx.shape[0]
    return (
        tokens.new_empty(num_pairs, tokens.shape[1]),
        gates.new_empty(num_pairs, dtype=torch.float32),
        w_gate_up.new_empty(w_gate_up.shape),
        w_down.new_empty(w_down.shape),
    )


_experts_backward_op = register(
    "experts_backward(Tensor grad_out, Tensor tokens, Tensor token_idx, Tensor expert_offsets, Tensor gates, Tensor? h,"
    " Tensor w_gate_up, Tensor w_down) -> (Tensor, Tensor, Tensor, Tensor)",
    _experts_backward,
    _experts_backward_fake,
)


def experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``experts_forward`` followed by ``combine``, before the sum over each token's experts.

    Args:
        grad_out: (S, D) gradient of the combined output. tokens, token_idx, expert_offsets, w_gate_up, w_down: as in
            ``experts_forward``. gates: (P,). h: (P, 2F) as saved, or ``None`` to compute it again.

    Returns:
        ``grad_pairs`` (P, D), to be combined with ``gates=None`` for the gradient of ``tokens``; ``grad_gates`` (P,)
        float32; ``grad_w_gate_up`` (E, 2F, D); ``grad_w_down`` (E, D, F), zeros for an expert without pairs.
    """
    return _experts_backward_op(grad_out, tokens, token_idx, expert_offsets, gates, h, w_gate_up, w_down)
