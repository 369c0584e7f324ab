"""Device functions that the grouped products share: which rows a program works on, the activation, rounding to TF32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_rows(offsets_ptr, tile, NUM_EXPERTS: tl.constexpr, PADDED_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Expert, first row and end row of the expert's group for row tile number ``tile``, all experts' tiles in a row.

    The expert is NUM_EXPERTS where there are fewer tiles: launches cover the most tiles there could be, so that the
    host need not know how many there are.
    """
    experts = tl.arange(0, PADDED_EXPERTS)
    real = experts < NUM_EXPERTS
    starts = tl.load(offsets_ptr + experts, mask=real, other=0).to(tl.int32)
    ends = tl.load(offsets_ptr + experts + 1, mask=real, other=0).to(tl.int32)
    tiles = (ends - starts + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles, axis=0)
    expert = tl.sum((real & (last <= tile)).to(tl.int32), axis=0)
    mine = experts == expert
    first_row = tl.sum(tl.where(mine, starts + (tile - (last - tiles)) * BLOCK_M, 0), axis=0)
    end_row = tl.sum(tl.where(mine, ends, 0), axis=0)
    return expert, first_row, end_row


@triton.jit
def silu_and_gradient(x):
    """silu(x) and its derivative."""
    sigmoid = 1 / (1 + tl.exp(-x))
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))


@triton.jit
def round_to_tf32(x):
    """The nearest float32 whose last 13 bits are zero, ties away from zero.

    Matrix units ignore these bits: without rounding every factor shrinks by 3.5e-4 on average, always towards zero.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN of all ones would become -0


@triton.jit
def stored(x, dtype: tl.constexpr, ROUND: tl.constexpr):
    """A float32 value as it is stored for the next product to read."""
    if ROUND:
        x = round_to_tf32(x)
    return x.to(dtype)


# x, out  (N,) f32


@triton.jit(do_not_specialize=["count"])
def round_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places, mask=places < count, other=0.0)
    tl.store(out_ptr + places, round_to_tf32(x), mask=places < count)
