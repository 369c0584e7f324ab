r"""Route on the GPU: one pass for the statistics and the logits, a second, over rows still in cache, to normalise.

    logits[s, e] = hidden[s] . router_weight[e] + router_offset[row(s), e]                       (float32)
    tokens[s]    = (hidden[s] - mean_s) * rstd_s * (1 + scale[row(s)]) + shift[row(s)]

The variance comes from Chan's update (Chan, Golub and LeVeque 1983), exact where the mean is large. Products of float32
are IEEE products whatever torch's precision setting: the selection hangs on a threshold.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .registry import check_usable, register

BLOCK_S = 16
BLOCK_D = 128

# hidden         (S, D)
# router_weight  (E, D)
# router_offset  (R, E) f32     row s // tokens_per_offset
# scale, shift   (R', D)        row s // tokens_per_row
# tokens         (S, D)         dtype of hidden
# logits         (S, E) f32
# mean, rstd     (S,) f32


@triton.jit
def route_kernel(
    hidden_ptr,
    router_weight_ptr,
    router_offset_ptr,
    scale_ptr,
    shift_ptr,
    tokens_ptr,
    logits_ptr,
    mean_ptr,
    rstd_ptr,
    num_tokens,
    dim,
    tokens_per_offset,
    tokens_per_row,
    eps,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = rows < num_tokens
    row_starts = rows.to(tl.int64) * dim
    experts = tl.arange(0, PADDED_EXPERTS)
    real = experts < NUM_EXPERTS
    steps = tl.arange(0, BLOCK_D)
    logits = tl.zeros((BLOCK_S, PADDED_EXPERTS), tl.float32)
    mean = tl.zeros((BLOCK_S,), tl.float32)
    squares = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, dim, BLOCK_D):
        cols = start + steps
        real_cols = cols < dim
        x = tl.load(
            hidden_ptr + row_starts[:, None] + cols[None, :], mask=inside[:, None] & real_cols[None, :], other=0.0
        )
        weight = tl.load(
            router_weight_ptr + experts[None, :] * dim + cols[:, None],
            mask=real[None, :] & real_cols[:, None],
            other=0.0,
        )
        if WIDEN:
            logits = tl.dot(x.to(tl.float32), weight.to(tl.float32), logits, input_precision="ieee")
        else:
            logits = tl.dot(x, weight, logits, input_precision="ieee")
        if NORMALISE:
            wide = x.to(tl.float32)
            count = tl.minimum(dim - start, BLOCK_D).to(tl.float32)
            chunk_mean = tl.sum(wide, axis=1) / count
            deviation = tl.where(real_cols[None, :], wide - chunk_mean[:, None], 0.0)
            shift_of_mean = chunk_mean - mean
            mean += shift_of_mean * (count / (start + count))
            squares += tl.sum(deviation * deviation, axis=1)
            squares += shift_of_mean * shift_of_mean * (start * count / (start + count))

    places = rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :]
    if HAS_OFFSET:
        offset_rows = (rows // tokens_per_offset).to(tl.int64)
        logits += tl.load(
            router_offset_ptr + offset_rows[:, None] * NUM_EXPERTS + experts[None, :],
            mask=inside[:, None] & real[None, :],
            other=0.0,
        )
    tl.store(logits_ptr + places, logits, mask=inside[:, None] & real[None, :])

    if NORMALISE:
        rstd = 1 / tl.sqrt(squares / dim + eps)
        tl.store(mean_ptr + rows, mean, mask=inside)
        tl.store(rstd_ptr + rows, rstd, mask=inside)
        condition_starts = (rows // tokens_per_row).to(tl.int64) * dim
        for start in range(0, dim, BLOCK_D):
            cols = start + steps
            mask = inside[:, None] & (cols < dim)[None, :]
            x = tl.load(hidden_ptr + row_starts[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            y = (x - mean[:, None]) * rstd[:, None]
            if HAS_SCALE:
                condition = condition_starts[:, None] + cols[None, :]
                scale = tl.load(scale_ptr + condition, mask=mask, other=0.0).to(tl.float32)
                shift = tl.load(shift_ptr + condition, mask=mask, other=0.0).to(tl.float32)
                y = y * (1 + scale) + shift
            tl.store(tokens_ptr + row_starts[:, None] + cols[None, :], y.to(tokens_ptr.dtype.element_ty), mask=mask)


def tokens_per(rows: Tensor | None, num_tokens: int) -> int:
    return 1 if rows is None else num_tokens // rows.shape[0]


def padded_experts(num_experts: int) -> int:
    return max(16, triton.next_power_of_2(num_experts))


def columns(dim: int) -> int:
    return min(BLOCK_D, max(16, triton.next_power_of_2(dim)))


def _route_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_usable(hidden)
    num_tokens, dim = hidden.shape
    num_experts = router_weight.shape[0]
    hidden, router_weight = hidden.contiguous(), router_weight.contiguous()
    if router_offset is not None:
        router_offset = router_offset.float().contiguous()
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    tokens = torch.empty_like(hidden) if normalise else hidden.new_empty(0, dim)
    logits = hidden.new_empty(num_tokens, num_experts, dtype=torch.float32)
    mean = hidden.new_empty(num_tokens if normalise else 0, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if num_tokens:
        route_kernel[(triton.cdiv(num_tokens, BLOCK_S),)](
            hidden, router_weight, router_offset, scale, shift, tokens, logits, mean, rstd,
            num_tokens, dim, tokens_per(router_offset, num_tokens), tokens_per(scale, num_tokens), eps,
            NUM_EXPERTS=num_experts, PADDED_EXPERTS=padded_experts(num_experts), BLOCK_S=BLOCK_S, BLOCK_D=columns(dim),
            NORMALISE=normalise, HAS_OFFSET=router_offset is not None, HAS_SCALE=scale is not None,
            WIDEN=hidden.dtype != router_weight.dtype,
        )  # fmt: skip
    return tokens, logits, mean, rstd


def _route_forward_fake(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, dim = hidden.shape
    statistics = hidden.new_empty(num_tokens if normalise else 0, dtype=torch.float32)
    return (
        hidden.new_empty(num_tokens if normalise else 0, dim),
        hidden.new_empty(num_tokens, router_weight.shape[0], dtype=torch.float32),
        statistics,
        torch.empty_like(statistics),
    )


_route_forward_op = register(
    "route_forward(Tensor hidden, Tensor router_weight, Tensor? router_offset, Tensor? scale, Tensor? shift, float eps,"
    " bool normalise) -> (Tensor, Tensor, Tensor, Tensor)",
    _route_forward,
    _route_forward_fake,
)


def route_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float = 1e-6,
    normalise: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised tokens, routing logits, and the statistics that the backward needs.

    Args:
        hidden: (S, D). router_weight: (E, D). router_offset: (R, E) or ``None``.
        scale, shift: (R', D), given together or not at all. R and R' divide S.
        eps: added to the variance. normalise: ``False`` hands ``hidden`` through.

    Returns:
        ``tokens`` (S, D) in the dtype of ``hidden``, ``logits`` (S, E) float32, ``mean`` and ``rstd`` (S,) float32,
        both empty without ``normalise``.
    """
    tokens, logits, mean, rstd = _route_forward_op(hidden, router_weight, router_offset, scale, shift, eps, normalise)
    return (tokens if normalise else hidden), logits, mean, rstd
