r"""Route on the GPU, backward. With xhat = (hidden - mean) rstd and g = grad_tokens (1 + scale):

    grad_hidden        = rstd (g - mean(g) - xhat mean(g xhat)) + grad_logits router_weight
    grad_scale[r]      = sum over the tokens of row r of grad_tokens xhat;   grad_shift, grad_router_offset alike
    grad_router_weight = grad_logits^T hidden

Sums over tokens are split into chunks, each chunk's sum is written, and the chunks are added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .registry import check_usable, register
from .route import BLOCK_S, columns, padded_experts, tokens_per

SUM_ROWS = 64
"""Tokens that a program of ``grad_rows_kernel`` adds, at most; more tokens in a row are more chunks."""
WEIGHT_CHUNKS = 64
"""Most chunks of the router weight's gradient, each (E, D)."""

# grad_tokens  (S, D)
# grad_logits  (S, E) f32
# grad_hidden  (S, D)      others as in route.py


@triton.jit
def grad_input_kernel(
    grad_tokens_ptr,
    grad_logits_ptr,
    hidden_ptr,
    mean_ptr,
    rstd_ptr,
    router_weight_ptr,
    scale_ptr,
    grad_hidden_ptr,
    num_tokens,
    dim,
    tokens_per_row,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = rows < num_tokens
    row_starts = rows.to(tl.int64) * dim
    experts = tl.arange(0, PADDED_EXPERTS)
    real = experts < NUM_EXPERTS
    steps = tl.arange(0, BLOCK_D)
    grad_logits = tl.load(
        grad_logits_ptr + rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :],
        mask=inside[:, None] & real[None, :],
        other=0.0,
    )
    condition_starts = (rows // tokens_per_row).to(tl.int64) * dim
    sum_g = tl.zeros((BLOCK_S,), tl.float32)
    sum_gx = tl.zeros((BLOCK_S,), tl.float32)
    if NORMALISE:
        mean = tl.load(mean_ptr + rows, mask=inside, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0)
        for start in range(0, dim, BLOCK_D):
            cols = start + steps
            mask = inside[:, None] & (cols < dim)[None, :]
            places = row_starts[:, None] + cols[None, :]
            g = tl.load(grad_tokens_ptr + places, mask=mask, other=0.0).to(tl.float32)
            x = tl.load(hidden_ptr + places, mask=mask, other=0.0).to(tl.float32)
            if HAS_SCALE:
                scale = tl.load(scale_ptr + condition_starts[:, None] + cols[None, :], mask=mask, other=0.0)
                g *= 1 + scale.to(tl.float32)
            sum_g += tl.sum(g, axis=1)
            sum_gx += tl.sum(g * (x - mean[:, None]) * rstd[:, None], axis=1)
    for start in range(0, dim, BLOCK_D):
        cols = start + steps
        real_cols = cols < dim
        mask = inside[:, None] & real_cols[None, :]
        places = row_starts[:, None] + cols[None, :]
        weight = tl.load(
            router_weight_ptr + experts[:, None] * dim + cols[None, :],
            mask=real[:, None] & real_cols[None, :],
            other=0.0,
        )
        g = tl.load(grad_tokens_ptr + places, mask=mask, other=0.0).to(tl.float32)
        if NORMALISE:
            x = tl.load(hidden_ptr + places, mask=mask, other=0.0).to(tl.float32)
            xhat = (x - mean[:, None]) * rstd[:, None]
            if HAS_SCALE:
                scale = tl.load(scale_ptr + condition_starts[:, None] + cols[None, :], mask=mask, other=0.0)
                g *= 1 + scale.to(tl.float32)
            g = (g - (sum_g / dim)[:, None] - xhat * (sum_gx / dim)[:, None]) * rstd[:, None]
        g = tl.dot(grad_logits, weight.to(tl.float32), g, input_precision="ieee")
        tl.store(grad_hidden_ptr + places, g.to(grad_hidden_ptr.dtype.element_ty), mask=mask)


# grad_scale, grad_shift  (R', C, D) f32    sum over each of the C chunks of a row's tokens


@triton.jit
def grad_rows_kernel(
    grad_tokens_ptr,
    hidden_ptr,
    mean_ptr,
    rstd_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    dim,
    tokens_per_row,
    chunks_per_row,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_BLOCKS: tl.constexpr,
):
    row = tl.program_id(0) // chunks_per_row
    chunk = tl.program_id(0) % chunks_per_row
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    grad_scale = tl.zeros((BLOCK_D,), tl.float32)
    grad_shift = tl.zeros((BLOCK_D,), tl.float32)
    for block in range(CHUNK_BLOCKS):
        within = (chunk * CHUNK_BLOCKS + block) * BLOCK_S + tl.arange(0, BLOCK_S)
        inside = within < tokens_per_row
        tokens = row.to(tl.int64) * tokens_per_row + within
        mask = inside[:, None] & (cols < dim)[None, :]
        g = tl.load(grad_tokens_ptr + tokens[:, None] * dim + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(hidden_ptr + tokens[:, None] * dim + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + tokens, mask=inside, other=0.0)
        rstd = tl.load(rstd_ptr + tokens, mask=inside, other=0.0)
        grad_scale += tl.sum(g * ((x - mean[:, None]) * rstd[:, None]), axis=0)
        grad_shift += tl.sum(g, axis=0)
    places = tl.program_id(0).to(tl.int64) * dim + cols
    tl.store(grad_scale_ptr + places, grad_scale, mask=cols < dim)
    tl.store(grad_shift_ptr + places, grad_shift, mask=cols < dim)


# grad_router_weight  (C, E, D) f32    grad_logits^T hidden of each chunk of tokens


@triton.jit
def grad_router_kernel(
    grad_logits_ptr,
    hidden_ptr,
    grad_router_weight_ptr,
    num_tokens,
    dim,
    blocks_per_chunk,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    experts = tl.arange(0, PADDED_EXPERTS)
    real = experts < NUM_EXPERTS
    total = tl.zeros((PADDED_EXPERTS, BLOCK_D), tl.float32)
    for block in range(blocks_per_chunk):
        rows = ((chunk * blocks_per_chunk + block) * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
        inside = rows < num_tokens
        g = tl.load(
            grad_logits_ptr + rows[None, :] * NUM_EXPERTS + experts[:, None],
            mask=inside[None, :] & real[:, None],
            other=0.0,
        )
        x = tl.load(
            hidden_ptr + rows[:, None] * dim + cols[None, :], mask=inside[:, None] & (cols < dim)[None, :], other=0.0
        )
        total = tl.dot(g, x.to(tl.float32), total, input_precision="ieee")
    places = (chunk.to(tl.int64) * NUM_EXPERTS + experts)[:, None] * dim + cols[None, :]
    tl.store(grad_router_weight_ptr + places, total, mask=real[:, None] & (cols < dim)[None, :])


def _route_backward(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_usable(hidden)
    num_tokens, dim = hidden.shape
    num_experts = router_weight.shape[0]
    grad_tokens, grad_logits = grad_tokens.to(hidden.dtype).contiguous(), grad_logits.float().contiguous()
    hidden, router_weight = hidden.contiguous(), router_weight.contiguous()
    scale = None if scale is None else scale.contiguous()
    scale_rows = 0 if scale is None or not normalise else scale.shape[0]
    block_d = columns(dim)
    sizes = {
        "NUM_EXPERTS": num_experts,
        "PADDED_EXPERTS": padded_experts(num_experts),
        "BLOCK_S": BLOCK_S,
        "BLOCK_D": block_d,
    }

    grad_router_offset = grad_logits.view(rows, num_tokens // max(rows, 1), num_experts).sum(dim=1)
    grad_hidden = torch.empty_like(hidden)
    if num_tokens == 0:
        grad_router_weight = grad_logits.new_zeros(num_experts, dim)
        grad_scale = grad_logits.new_zeros(scale_rows, dim)
        return grad_hidden, grad_router_weight, grad_router_offset, grad_scale, grad_scale.clone()

    grad_input_kernel[(triton.cdiv(num_tokens, BLOCK_S),)](
        grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, grad_hidden,
        num_tokens, dim, tokens_per(scale, num_tokens), NORMALISE=normalise, HAS_SCALE=scale is not None, **sizes,
    )  # fmt: skip

    blocks = triton.cdiv(num_tokens, BLOCK_S)
    blocks_per_chunk = triton.cdiv(blocks, WEIGHT_CHUNKS)
    chunks = triton.cdiv(blocks, blocks_per_chunk)
    weight_sums = grad_logits.new_empty(chunks, num_experts, dim)
    grad_router_kernel[(chunks, triton.cdiv(dim, block_d))](
        grad_logits, hidden, weight_sums, num_tokens, dim, blocks_per_chunk, **sizes
    )
    grad_router_weight = weight_sums.sum(dim=0)

    if scale is None or not normalise:
        none = grad_logits.new_empty(0, dim)
        return grad_hidden, grad_router_weight, grad_router_offset, none, none.clone()
    tokens_per_row = num_tokens // scale_rows
    chunks_per_row = triton.cdiv(tokens_per_row, SUM_ROWS)
    row_sums = grad_logits.new_empty(2, scale_rows, chunks_per_row, dim)
    grad_rows_kernel[(scale_rows * chunks_per_row, triton.cdiv(dim, block_d))](
        grad_tokens, hidden, mean, rstd, row_sums[0], row_sums[1], dim, tokens_per_row, chunks_per_row,
        BLOCK_S=BLOCK_S, BLOCK_D=block_d, CHUNK_BLOCKS=SUM_ROWS // BLOCK_S,
    )  # fmt: skip
    return grad_hidden, grad_router_weight, grad_router_offset, row_sums[0].sum(dim=1), row_sums[1].sum(dim=1)


def _route_backward_fake(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scale_rows = 0 if scale is None or not normalise else scale.shape[0]
    grad_scale = hidden.new_empty(scale_rows, hidden.shape[1], dtype=torch.float32)
    return (
        hidden.new_empty(hidden.shape),
        router_weight.new_empty(router_weight.shape, dtype=torch.float32),
        hidden.new_empty(rows, router_weight.shape[0], dtype=torch.float32),
        grad_scale,
        torch.empty_like(grad_scale),
    )


_route_backward_op = register(
    "route_backward(Tensor grad_tokens, Tensor grad_logits, Tensor hidden, Tensor mean, Tensor rstd,"
    " Tensor router_weight, Tensor? scale, bool normalise, SymInt rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _route_backward,
    _route_backward_fake,
)


def route_backward(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``route_forward``.

    Args:
        grad_tokens: (S, D). grad_logits: (S, E) float32. Others as ``route_forward`` took or gave them.
        rows: R, the number of rows of ``router_offset``.

    Returns:
        ``grad_hidden`` (S, D) in the dtype of ``hidden``; in float32 ``grad_router_weight`` (E, D),
        ``grad_router_offset`` (R, E), ``grad_scale`` and ``grad_shift`` (R', D), ``None`` where there is no scale.
    """
    *grads, grad_scale, grad_shift = _route_backward_op(
        grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, normalise, rows
    )
    if scale is None or not normalise:
        return (*grads, None, None)
    return (*grads, grad_scale, grad_shift)
