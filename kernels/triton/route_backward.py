r"""Route on the GPU, backward. With xhat = (hidden - mean) rstd and g = grad_tokens (1 + scale):

    grad_hidden        = rstd (g - mean(g) - xhat mean(g xhat)) + grad_logits router_weight
    grad_scale[r]      = sum over the tokens of row r of grad_tokens xhat;   grad_shift, grad_router_offset alike
    grad_router_weight = grad_logits^T hidden

Sums over tokens are split into chunks, each chunk's sum is written, and the chunks of all sums are added in order by
one kernel, which also sums ``grad_router_offset``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import expect, expect_divisor, expect_rows
from .launch import cdiv, launch, power_of_2, token_constants
from .registry import on_its_device
from .together import Spare

ELEMENTS, ELEMENTS_PER_WARP = 1024, 256
SUM_TOKENS = 16
"""Tokens of a row that a program of ``grad_input_kernel`` adds, at most; more tokens in a row are more chunks."""
WEIGHT_BLOCK_S, WEIGHT_BLOCK_D = 16, 128
WEIGHT_CHUNKS = 64
"""Most chunks of the router weight's gradient, each (E, D)."""
SUM_ROWS, SUM_COLUMNS = 16, 128
SUM_ELEMENTS = 4096
"""Of a block of ``grad_logits``, whose rows are short."""

# grad_tokens  (S, D)
# grad_logits  (S, E) f32
# grad_hidden  (S, D)           others as in route.py
# grad_scale, grad_shift  (R', C, D) f32    sum over each of the C chunks of a row's tokens


@triton.jit(do_not_specialize=["tokens_per_row", "chunks_per_row"])
def grad_input_kernel(
    grad_tokens_ptr,
    grad_logits_ptr,
    hidden_ptr,
    mean_ptr,
    rstd_ptr,
    router_weight_ptr,
    scale_ptr,
    grad_hidden_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    tokens_per_row,
    chunks_per_row,
    DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUM_TOKENS: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    row = tl.program_id(0) // chunks_per_row
    chunk = tl.program_id(0) % chunks_per_row
    cols = tl.arange(0, BLOCK_D)
    experts = tl.arange(0, PADDED_EXPERTS)
    real = cols < DIM
    if HAS_SCALE:
        factor = 1 + tl.load(scale_ptr + row.to(tl.int64) * DIM + cols, mask=real, other=0.0).to(tl.float32)
        grad_scale = tl.zeros((BLOCK_D,), tl.float32)
        grad_shift = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, SUM_TOKENS, BLOCK_S):
        within = chunk * SUM_TOKENS + start + tl.arange(0, BLOCK_S)
        inside = within < tokens_per_row
        tokens = row.to(tl.int64) * tokens_per_row + within
        mask = inside[:, None] & real[None, :]
        places = tokens[:, None] * DIM + cols[None, :]
        g = tl.load(grad_tokens_ptr + places, mask=mask, other=0.0).to(tl.float32)
        if NORMALISE:
            x = tl.load(hidden_ptr + places, mask=mask, other=0.0).to(tl.float32)
            mean = tl.load(mean_ptr + tokens, mask=inside, other=0.0)
            rstd = tl.load(rstd_ptr + tokens, mask=inside, other=0.0)
            xhat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
            if HAS_SCALE:
                grad_scale += tl.sum(g * xhat, axis=0)
                grad_shift += tl.sum(g, axis=0)
                g *= factor[None, :]
            mean_g = tl.sum(g, axis=1) / DIM
            mean_gx = tl.sum(g * xhat, axis=1) / DIM
            g = (g - mean_g[:, None] - xhat * mean_gx[:, None]) * rstd[:, None]
        logit_ptrs = grad_logits_ptr + tokens[:, None] * NUM_EXPERTS + experts[None, :]
        grad_logits = tl.load(logit_ptrs, mask=inside[:, None] & (experts < NUM_EXPERTS)[None, :], other=0.0)
        for expert in range(NUM_EXPERTS):
            weight = tl.load(router_weight_ptr + expert * DIM + cols, mask=real, other=0.0).to(tl.float32)
            grad_logit = tl.sum(tl.where((experts == expert)[None, :], grad_logits, 0.0), axis=1)
            g += grad_logit[:, None] * weight[None, :]
        tl.store(grad_hidden_ptr + places, g.to(grad_hidden_ptr.dtype.element_ty), mask=mask)
    if HAS_SCALE:
        sums = tl.program_id(0).to(tl.int64) * DIM + cols
        tl.store(grad_scale_ptr + sums, grad_scale, mask=real)
        tl.store(grad_shift_ptr + sums, grad_shift, mask=real)


# grad_router_weight  (C, E, D) f32    grad_logits^T hidden of each chunk of tokens


@triton.jit(do_not_specialize=["num_tokens", "blocks_per_chunk"])
def grad_router_kernel(
    grad_logits_ptr,
    hidden_ptr,
    grad_router_weight_ptr,
    num_tokens,
    blocks_per_chunk,
    DIM: tl.constexpr,
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
            hidden_ptr + rows[:, None] * DIM + cols[None, :], mask=inside[:, None] & (cols < DIM)[None, :], other=0.0
        )
        total = tl.dot(g, x.to(tl.float32), total, input_precision="ieee")
    places = (chunk.to(tl.int64) * NUM_EXPERTS + experts)[:, None] * DIM + cols[None, :]
    tl.store(grad_router_weight_ptr + places, total, mask=real[:, None] & (cols < DIM)[None, :])


# grad_router_offset  (R, E) f32    sum of grad_logits over each row's tokens
# *_chunks            (I, C, W) f32    sums of chunks, of which the gradients (I, W) f32 of the same name are the sums


@triton.jit
def _add_rows(
    chunks_ptr, out_ptr, program, num_chunks, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    blocks = tl.cdiv(WIDTH, BLOCK_C)
    item = (program // blocks).to(tl.int64)
    cols = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, num_chunks, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        places = (item * num_chunks + rows[:, None]) * WIDTH + cols[None, :]
        mask = (rows < num_chunks)[:, None] & (cols < WIDTH)[None, :]
        total += tl.sum(tl.load(chunks_ptr + places, mask=mask, other=0.0), axis=0)
    tl.store(out_ptr + item * WIDTH + cols, total, mask=cols < WIDTH)


@triton.jit(do_not_specialize=["num_rows", "tokens_per_row", "scale_rows", "scale_chunks", "weight_chunks"])
def sums_kernel(
    grad_logits_ptr,
    grad_router_offset_ptr,
    grad_scale_chunks_ptr,
    grad_scale_ptr,
    grad_shift_chunks_ptr,
    grad_shift_ptr,
    grad_router_weight_chunks_ptr,
    grad_router_weight_ptr,
    num_rows,
    tokens_per_row,
    scale_rows,
    scale_chunks,
    weight_chunks,
    DIM: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    program = tl.program_id(0)
    if HAS_OFFSET:
        if program < num_rows:
            _add_rows(
                grad_logits_ptr, grad_router_offset_ptr, program, tokens_per_row, NUM_EXPERTS, BLOCK_S, PADDED_EXPERTS
            )
        program -= num_rows
    if HAS_SCALE:
        scale_programs = scale_rows * tl.cdiv(DIM, BLOCK_C)
        if (program >= 0) & (program < scale_programs):
            _add_rows(grad_scale_chunks_ptr, grad_scale_ptr, program, scale_chunks, DIM, BLOCK_R, BLOCK_C)
        program -= scale_programs
        if (program >= 0) & (program < scale_programs):
            _add_rows(grad_shift_chunks_ptr, grad_shift_ptr, program, scale_chunks, DIM, BLOCK_R, BLOCK_C)
        program -= scale_programs
    if HAS_WEIGHT and program >= 0:
        chunks_ptr, out_ptr = grad_router_weight_chunks_ptr, grad_router_weight_ptr
        _add_rows(chunks_ptr, out_ptr, program, weight_chunks, NUM_EXPERTS * DIM, BLOCK_R, BLOCK_C)


def grad_input_constants(dim: int, num_experts: int) -> dict[str, int]:
    return {**token_constants(dim, num_experts, ELEMENTS, ELEMENTS_PER_WARP), "SUM_TOKENS": SUM_TOKENS}


def grad_router_constants(dim: int, num_experts: int) -> dict[str, int]:
    return {
        "DIM": dim,
        "NUM_EXPERTS": num_experts,
        "PADDED_EXPERTS": max(16, power_of_2(num_experts)),
        "BLOCK_S": WEIGHT_BLOCK_S,
        "BLOCK_D": min(WEIGHT_BLOCK_D, max(16, power_of_2(dim))),
    }


def sums_constants(dim: int, num_experts: int) -> dict[str, int]:
    padded = power_of_2(max(2, num_experts))
    return {
        "DIM": dim,
        "NUM_EXPERTS": num_experts,
        "PADDED_EXPERTS": padded,
        "BLOCK_S": SUM_ELEMENTS // padded,
        "BLOCK_R": SUM_ROWS,
        "BLOCK_C": SUM_COLUMNS,
    }


@on_its_device
def route_backward(
    grad_tokens: Tensor | None,
    grad_logits: Tensor,
    hidden: Tensor,
    statistics: tuple[Tensor, Tensor],
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
    needed: tuple[bool, bool] = (True, True),
    memory: tuple[Tensor | None, Spare | None] = (None, None),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``route_forward``.

    Args:
        grad_tokens: (S, D); ``None`` where nothing but the router gets a gradient.
        grad_logits: (S, E) float32.
        statistics: mean and rstd. Others as ``route_forward`` took or gave them.
        rows: R, the number of rows of ``router_offset``.
        needed: whether ``router_weight`` and ``router_offset`` get a gradient.
        memory: for ``grad_hidden``, and for the sums of chunks; ``None`` for new memory.

    Returns:
        ``grad_hidden`` (S, D) in the dtype of ``hidden``; in float32 ``grad_router_weight`` (E, D),
        ``grad_router_offset`` (R, E), ``grad_scale`` and ``grad_shift`` (R', D); ``None`` for what gets none.
    """
    num_tokens, dim = hidden.shape
    num_experts = router_weight.shape[0]
    (mean, rstd), (weight_needed, offset_needed) = statistics, needed
    into, spare = memory[0], memory[1] or Spare()
    expect("hidden", hidden, num_tokens, dim)
    expect("grad_tokens", grad_tokens, num_tokens, dim)
    expect("grad_logits", grad_logits, num_tokens, num_experts)
    expect("router_weight", router_weight, num_experts, dim)
    if normalise:
        expect("mean", mean, num_tokens, dtypes=(torch.float32,))
        expect("rstd", rstd, num_tokens, dtypes=(torch.float32,))
        expect_rows("scale", scale, num_tokens, dim)
    expect_divisor("rows", rows, num_tokens)
    grad_tokens = None if grad_tokens is None else grad_tokens.contiguous()
    grad_logits = grad_logits.float().contiguous()
    hidden, router_weight = hidden.contiguous(), router_weight.contiguous()
    scale = scale.contiguous() if normalise and scale is not None and grad_tokens is not None else None
    scale_rows = 0 if scale is None else scale.shape[0]

    new = grad_logits.new_empty if num_tokens else grad_logits.new_zeros
    grad_weight = new(num_experts, dim) if weight_needed else None
    grad_offset = new(rows, num_experts) if offset_needed else None
    grad_scale, grad_shift = (None, None) if scale is None else (new(scale_rows, dim), new(scale_rows, dim))
    grad_hidden = None
    if grad_tokens is not None:
        expect("memory", into, num_tokens, dim, dtypes=(hidden.dtype,))
        grad_hidden = torch.empty_like(hidden) if into is None else into
    if num_tokens == 0:
        return grad_hidden, grad_weight, grad_offset, grad_scale, grad_shift

    tokens_per_row = num_tokens // max(scale_rows, 1)
    chunks_per_row = cdiv(tokens_per_row, SUM_TOKENS)
    scale_chunks, shift_chunks = (
        None if scale is None else spare.new(grad_logits, scale_rows, chunks_per_row, dim) for _ in range(2)
    )
    if grad_tokens is not None:
        launch(
            grad_input_kernel,
            (max(scale_rows, 1) * chunks_per_row, 1, 1),
            (
                grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, grad_hidden,
                scale_chunks, shift_chunks, tokens_per_row, chunks_per_row,
            ),
            {**grad_input_constants(dim, num_experts), "NORMALISE": normalise, "HAS_SCALE": scale is not None},
        )  # fmt: skip
    weight_chunks = _grad_router_weight(grad_logits, hidden, spare) if weight_needed else None
    flags = {"HAS_OFFSET": offset_needed, "HAS_SCALE": scale is not None, "HAS_WEIGHT": weight_needed}
    programs = (
        rows if offset_needed else 0,
        2 * scale_rows * cdiv(dim, SUM_COLUMNS),
        cdiv(num_experts * dim, SUM_COLUMNS) if weight_needed else 0,
    )
    launch(
        sums_kernel,
        (sum(programs), 1, 1),
        (
            grad_logits, grad_offset, scale_chunks, grad_scale, shift_chunks, grad_shift, weight_chunks, grad_weight,
            programs[0], num_tokens // rows, scale_rows, chunks_per_row,
            0 if weight_chunks is None else weight_chunks.shape[0],
        ),
        {**sums_constants(dim, num_experts), **flags},
    )  # fmt: skip
    return grad_hidden, grad_weight, grad_offset, grad_scale, grad_shift


def _grad_router_weight(grad_logits: Tensor, hidden: Tensor, spare: Spare) -> Tensor:
    """(C, E, D), the sum of each chunk of tokens."""
    (num_tokens, dim), num_experts = hidden.shape, grad_logits.shape[1]
    sizes = grad_router_constants(dim, num_experts)
    blocks = cdiv(num_tokens, sizes["BLOCK_S"])
    blocks_per_chunk = cdiv(blocks, WEIGHT_CHUNKS)
    chunks = cdiv(blocks, blocks_per_chunk)
    weight_sums = spare.new(grad_logits, chunks, num_experts, dim)
    launch(
        grad_router_kernel,
        (chunks, cdiv(dim, sizes["BLOCK_D"]), 1),
        (grad_logits, hidden, weight_sums, num_tokens, blocks_per_chunk),
        sizes,
    )
    return weight_sums
