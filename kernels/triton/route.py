r"""Route on the GPU: one pass over each token for its statistics, its normalised form and its logits.

    logits[s, e] = hidden[s] . router_weight[e] + router_offset[row(s), e]                       (float32)
    tokens[s]    = (hidden[s] - mean_s) * rstd_s * (1 + scale[row(s)]) + shift[row(s)]

A program holds whole tokens, so the variance is that of deviations from the mean. Products are float32 sums of float32
products whatever torch's precision setting: the selection hangs on a threshold.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import EPS
from .arguments import expect, expect_rows
from .launch import cdiv, launch, token_constants
from .registry import on_its_device

ELEMENTS, ELEMENTS_PER_WARP = 2048, 2048

# hidden         (S, D)
# router_weight  (E, D)
# router_offset  (R, E) f32     row s // tokens_per_offset
# scale, shift   (R', D)        row s // tokens_per_row
# tokens         (S, D)
# logits         (S, E) f32
# mean, rstd     (S,) f32


@triton.jit(do_not_specialize=["num_tokens", "tokens_per_offset", "tokens_per_row"])
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
    tokens_per_offset,
    tokens_per_row,
    eps,
    DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    cols = tl.arange(0, BLOCK_D)
    experts = tl.arange(0, PADDED_EXPERTS)
    inside = rows < num_tokens
    real = cols < DIM
    mask = inside[:, None] & real[None, :]
    places = rows.to(tl.int64)[:, None] * DIM + cols[None, :]
    x = tl.load(hidden_ptr + places, mask=mask, other=0.0).to(tl.float32)

    if NORMALISE:
        mean = tl.sum(x, axis=1) / DIM
        deviation = tl.where(real[None, :], x - mean[:, None], 0.0)
        rest = tl.sum(deviation, axis=1) / DIM  # what a sum of large numbers leaves of the mean
        mean, deviation = mean + rest, tl.where(real[None, :], deviation - rest[:, None], 0.0)
        rstd = 1 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / DIM + eps)
        y = deviation * rstd[:, None]
        if HAS_SCALE:
            condition = (rows // tokens_per_row).to(tl.int64)[:, None] * DIM + cols[None, :]
            scale = tl.load(scale_ptr + condition, mask=mask, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + condition, mask=mask, other=0.0).to(tl.float32)
            y = y * (1 + scale) + shift
        tl.store(tokens_ptr + places, y.to(tokens_ptr.dtype.element_ty), mask=mask)
        tl.store(mean_ptr + rows, mean, mask=inside)
        tl.store(rstd_ptr + rows, rstd, mask=inside)

    logits = tl.zeros((BLOCK_S, PADDED_EXPERTS), tl.float32)
    for expert in range(NUM_EXPERTS):
        weight = tl.load(router_weight_ptr + expert * DIM + cols, mask=real, other=0.0).to(tl.float32)
        products = tl.sum(x * weight[None, :], axis=1)
        logits = tl.where((experts == expert)[None, :], products[:, None], logits)
    known = inside[:, None] & (experts < NUM_EXPERTS)[None, :]
    if HAS_OFFSET:
        offsets = (rows // tokens_per_offset).to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :]
        logits += tl.load(router_offset_ptr + offsets, mask=known, other=0.0)
    tl.store(logits_ptr + rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :], logits, mask=known)


def tokens_per(rows: Tensor | None, num_tokens: int) -> int:
    return 1 if rows is None else num_tokens // max(rows.shape[0], 1)


def route_constants(dim: int, num_experts: int) -> dict[str, int]:
    """Sizes and blocks of the kernel's programs."""
    return token_constants(dim, num_experts, ELEMENTS, ELEMENTS_PER_WARP)


@on_its_device
def route_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float = EPS,
    normalise: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised tokens, routing logits, and the statistics that the backward needs.

    Args:
        hidden: (S, D).
        router_weight: (E, D).
        router_offset: (R, E) or ``None``.
        scale, shift: (R', D), given together or not at all. R and R' divide S.
        eps: added to the variance.
        normalise: ``False`` hands ``hidden`` through.
        dtype: of the tokens, ``None`` for that of ``hidden``.

    Returns:
        ``tokens`` (S, D) in ``dtype``, ``logits`` (S, E) float32, ``mean`` and ``rstd`` (S,) float32,
        both empty without ``normalise``.
    """
    num_tokens, dim = hidden.shape
    num_experts = router_weight.shape[0]
    expect("hidden", hidden, num_tokens, dim)
    expect("router_weight", router_weight, num_experts, dim)
    expect_rows("router_offset", router_offset, num_tokens, num_experts)
    if (scale is None) != (shift is None):
        raise ValueError("scale: expected scale and shift together, got only one of them")
    if scale is not None and shift is not None:
        expect_rows("scale", scale, num_tokens, dim)
        expect("shift", shift, *scale.shape)
    given = hidden
    hidden, router_weight = hidden.contiguous(), router_weight.contiguous()
    if router_offset is not None:
        router_offset = router_offset.float().contiguous()
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    tokens = torch.empty_like(hidden, dtype=dtype) if normalise else hidden.new_empty(0, dim)
    logits = hidden.new_empty(num_tokens, num_experts, dtype=torch.float32)
    mean = hidden.new_empty(num_tokens if normalise else 0, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    sizes = route_constants(dim, num_experts)
    launch(
        route_kernel,
        (cdiv(num_tokens, sizes["BLOCK_S"]), 1, 1),
        (
            hidden, router_weight, router_offset, scale, shift, tokens, logits, mean, rstd,
            num_tokens, tokens_per(router_offset, num_tokens), tokens_per(scale, num_tokens), eps,
        ),
        {
            **sizes,
            "NORMALISE": normalise, "HAS_OFFSET": router_offset is not None, "HAS_SCALE": scale is not None,
        },
    )  # fmt: skip
    return (tokens if normalise else given.to(dtype or given.dtype)), logits, mean, rstd
