r"""Select on the GPU: two kernels that scan and scatter, without sorting, atomics or a host read in between.

    selected(e, s) <=> valid[s] and sigmoid(logits[s, e]) + selection_bias[e] > 0, or chosen[s, e]
    slots[s, e]     =  expert_offsets[e] + #{s' < s : selected(e, s')}

The tokens are cut into at most MAX_CHUNKS chunks. ``count`` counts every expert's tokens of each chunk; in ``scatter``
each chunk sums the counts before it and writes its pairs where they belong: ordered by expert, then by token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import expect
from .launch import cdiv, launch, power_of_2
from .overflow import overflow_flag
from .registry import on_its_device

MAX_EXPERTS = 64
MAX_CHUNKS = 128
BLOCK_S = 32
FILL = 512

# logits        (S, E) f32     routing logits
# bias          (E,) f32       selection bias; none where there is a choice
# valid         (S,) bool      False = padding; or (S, E) bool, False = pair not allowed, the choice without a bias
# chunk_counts  (E, C) i32     tokens that each expert takes of each chunk
# token_idx     (P_cap,) i64   token of each pair; 0 beyond the last, with FILL
# gates         (P_cap,) f32   softmax over all experts, taken at the pair's; NaN when more than P_cap are needed
# offsets       (E + 1,) i64   pairs of each expert, cut off at P_cap
# slots         (S, E) i64     pair of a token and an expert, -1 = none
# counts        (E,) i64       pairs of each expert, not cut off
# overflow      (2,) i64       in the host's memory: pairs needed and P_cap, written when more than P_cap are needed


@triton.jit
def _softmax(logits):
    powers = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _load_logits(logits_ptr, rows, experts, num_tokens, NUM_EXPERTS: tl.constexpr):
    # rows past the end repeat the last one: finite values, never stored
    safe_rows = tl.minimum(rows, num_tokens - 1).to(tl.int64)
    pointers = logits_ptr + safe_rows[:, None] * NUM_EXPERTS + experts[None, :]
    return tl.load(pointers, mask=(experts < NUM_EXPERTS)[None, :], other=float("-inf"))


@triton.jit
def _selected(
    logits,
    bias_ptr,
    valid_ptr,
    rows,
    experts,
    num_tokens,
    NUM_EXPERTS: tl.constexpr,
    VALID: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    taken = (rows < num_tokens)[:, None] & (experts < NUM_EXPERTS)[None, :]
    if VALID == "pair":
        places = rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :]
        taken = tl.load(valid_ptr + places, mask=taken, other=0) != 0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + experts, mask=experts < NUM_EXPERTS, other=-2.0)
        taken = taken & (1 / (1 + tl.exp(-logits)) + bias[None, :] > 0)
    if VALID == "token":
        valid = tl.load(valid_ptr + rows, mask=rows < num_tokens, other=0)
        taken = taken & (valid != 0)[:, None]
    return taken


@triton.jit(do_not_specialize=["num_tokens", "num_chunks", "blocks_per_chunk"])
def count_kernel(
    logits_ptr,
    bias_ptr,
    valid_ptr,
    chunk_counts_ptr,
    num_tokens,
    num_chunks,
    blocks_per_chunk,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VALID: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    chunk = tl.program_id(0)
    experts = tl.arange(0, PADDED_EXPERTS)
    totals = tl.zeros((PADDED_EXPERTS,), tl.int32)
    for block in range(blocks_per_chunk):
        rows = (chunk * blocks_per_chunk + block) * BLOCK_S + tl.arange(0, BLOCK_S)
        logits = _load_logits(logits_ptr, rows, experts, num_tokens, NUM_EXPERTS)
        taken = _selected(logits, bias_ptr, valid_ptr, rows, experts, num_tokens, NUM_EXPERTS, VALID, HAS_BIAS)
        totals += tl.sum(taken.to(tl.int32), axis=0)
    tl.store(chunk_counts_ptr + experts * num_chunks + chunk, totals, mask=experts < NUM_EXPERTS)


@triton.jit(do_not_specialize=["num_tokens", "num_chunks", "blocks_per_chunk", "max_pairs"])
def scatter_kernel(
    logits_ptr,
    bias_ptr,
    valid_ptr,
    chunk_counts_ptr,
    token_idx_ptr,
    gates_ptr,
    offsets_ptr,
    slots_ptr,
    counts_ptr,
    overflow_ptr,
    num_tokens,
    num_chunks,
    blocks_per_chunk,
    max_pairs,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VALID: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    FILL: tl.constexpr,
):
    chunk = tl.program_id(0)
    experts = tl.arange(0, PADDED_EXPERTS)
    real = experts < NUM_EXPERTS
    chunks = tl.arange(0, MAX_CHUNKS)
    chunk_counts = tl.load(
        chunk_counts_ptr + experts[:, None] * num_chunks + chunks[None, :],
        mask=real[:, None] & (chunks < num_chunks)[None, :],
        other=0,
    )
    totals = tl.sum(chunk_counts, axis=1)
    ends = tl.cumsum(totals, axis=0)
    position = ends - totals + tl.sum(tl.where((chunks < chunk)[None, :], chunk_counts, 0), axis=1)
    needed = tl.sum(totals, axis=0)
    spoil = tl.where(needed > max_pairs, float("nan"), 1.0)  # what lacks a pair must not look like a result

    if chunk == 0:
        tl.store(counts_ptr + experts, totals.to(tl.int64), mask=real)
        tl.store(offsets_ptr + experts, tl.minimum(ends - totals, max_pairs).to(tl.int64), mask=real)
        tl.store(offsets_ptr + NUM_EXPERTS, tl.minimum(needed, max_pairs).to(tl.int64))
        if needed > max_pairs:
            tl.store(overflow_ptr, needed.to(tl.int64))
            tl.store(overflow_ptr + 1, max_pairs)

    for block in range(blocks_per_chunk):
        rows = (chunk * blocks_per_chunk + block) * BLOCK_S + tl.arange(0, BLOCK_S)
        logits = _load_logits(logits_ptr, rows, experts, num_tokens, NUM_EXPERTS)
        taken = _selected(logits, bias_ptr, valid_ptr, rows, experts, num_tokens, NUM_EXPERTS, VALID, HAS_BIAS)
        ranks = tl.cumsum(taken.to(tl.int32), axis=0)
        slot = position[None, :] + ranks - 1
        kept = taken & (slot < max_pairs)
        tl.store(token_idx_ptr + slot, rows[:, None].to(tl.int64) + tl.zeros_like(slot), mask=kept)
        tl.store(gates_ptr + slot, _softmax(logits) * spoil, mask=kept)
        tl.store(
            slots_ptr + rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :],
            tl.where(kept, slot, -1).to(tl.int64),
            mask=(rows < num_tokens)[:, None] & real[None, :],
        )
        position += tl.sum(taken.to(tl.int32), axis=0)

    if FILL:  # what lies beyond the pairs stays valid indices
        for start in range(needed + chunk * FILL, max_pairs, num_chunks * FILL):
            unused = start + tl.arange(0, FILL)
            tl.store(token_idx_ptr + unused, tl.zeros((FILL,), tl.int64), mask=unused < max_pairs)
            tl.store(gates_ptr + unused, tl.zeros((FILL,), tl.float32), mask=unused < max_pairs)


# grad_gates   (P_cap,) f32   gradient of each pair's gate
# logits       (S, E) f32,  slots (S, E) i64: as above
# added        (S, E) f32     gradient of the logits by another way
# grad_logits  (S, E) f32     p * (G - sum_e p G) + added, p = softmax(logits), G = grad_gates where selected, else 0


@triton.jit(do_not_specialize=["num_tokens"])
def select_backward_kernel(
    grad_gates_ptr,
    logits_ptr,
    slots_ptr,
    added_ptr,
    grad_logits_ptr,
    num_tokens,
    NUM_EXPERTS: tl.constexpr,
    PADDED_EXPERTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    experts = tl.arange(0, PADDED_EXPERTS)
    inside = (rows < num_tokens)[:, None] & (experts < NUM_EXPERTS)[None, :]
    places = rows.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :]
    slots = tl.load(slots_ptr + places, mask=inside, other=-1)
    grads = tl.load(grad_gates_ptr + slots, mask=slots >= 0, other=0.0)
    probabilities = _softmax(_load_logits(logits_ptr, rows, experts, num_tokens, NUM_EXPERTS))
    mean = tl.sum(probabilities * grads, axis=1)
    total = probabilities * (grads - mean[:, None])
    if HAS_ADDED:
        total += tl.load(added_ptr + places, mask=inside, other=0.0)
    tl.store(grad_logits_ptr + places, total, mask=inside)


@on_its_device
def select(
    logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None = None, max_pairs: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The selected pairs, ordered by expert, then by token.

    Args:
        logits: (S, E) float32, E <= 64.
        selection_bias: (E,) float32.
        valid: (S,) or (S, E) bool, or ``None`` for all; without a bias (S, E) bool, the choice.
        max_pairs: ``None`` is the exact mode: the host waits once for the number of pairs P. A number is the static
            mode: buffers of that size, no host read; selecting more makes every gate NaN and raises ``RuntimeError``
            with the numbers at a later call or at ``raise_on_overflow``, never in silence. S * E always suffices.

    Returns:
        ``token_idx`` (P,) int64, ``gates`` (P,) float32, ``expert_offsets`` (E + 1,) int64, ``slots`` (S, E) int64 with
        -1 where not selected, ``counts`` (E,) int64. In the static mode P is ``max_pairs``; pairs from
        ``expert_offsets[E]`` on mean nothing.
    """
    overflow_flag(logits.device).raise_if_set()
    token_idx, gates, offsets, slots, counts = allocate_and_fill(logits, selection_bias, valid, max_pairs)
    if max_pairs is None:
        num_pairs = int(offsets[-1])  # the one host read of the exact mode
        token_idx, gates = token_idx[:num_pairs], gates[:num_pairs]
    elif logits.device.type == "cpu":
        overflow_flag(logits.device).raise_if_set()
    return token_idx, gates, offsets, slots, counts


def allocate_and_fill(
    logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None, max_pairs: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``select`` without any read: in the exact mode there is room for all pairs, and what lies beyond P is unset."""
    num_tokens, num_experts = logits.shape
    _check_size(num_tokens, num_experts)
    if max_pairs is not None and not 0 <= max_pairs < 2**31:
        raise ValueError(f"max_pairs: expected >= 0 and < 2**31, got {max_pairs}")
    if selection_bias is None and (valid is None or valid.shape != logits.shape):
        found = None if valid is None else tuple(valid.shape)
        raise ValueError(f"valid: expected the choice {tuple(logits.shape)} where there is no bias, got {found}")
    expect("logits", logits, num_tokens, num_experts, dtypes=(torch.float32,))
    expect("selection_bias", selection_bias, num_experts, dtypes=(torch.float32,))
    columns = (num_experts,) if valid is not None and valid.dim() == 2 else ()
    expect("valid", valid, num_tokens, *columns, dtypes=(torch.bool,))
    logits = logits.contiguous()
    selection_bias = None if selection_bias is None else selection_bias.contiguous()
    valid = None if valid is None else valid.contiguous()
    device = logits.device
    capacity = num_tokens * num_experts if max_pairs is None else max_pairs
    made = torch.empty if num_tokens else torch.zeros
    token_idx = made(capacity, dtype=torch.int64, device=device)
    gates = made(capacity, dtype=torch.float32, device=device)
    offsets = made(num_experts + 1, dtype=torch.int64, device=device)
    slots = torch.empty(num_tokens, num_experts, dtype=torch.int64, device=device)
    counts = made(num_experts, dtype=torch.int64, device=device)
    if num_tokens:
        blocks_per_chunk = cdiv(num_tokens, MAX_CHUNKS * BLOCK_S)
        num_chunks = cdiv(num_tokens, blocks_per_chunk * BLOCK_S)
        chunk_counts = torch.empty(num_experts, num_chunks, dtype=torch.int32, device=device)
        sizes = {
            **selection_constants(num_experts),
            "VALID": "all" if valid is None else "token" if valid.dim() == 1 else "pair",
            "HAS_BIAS": selection_bias is not None,
        }
        inputs = (logits, selection_bias, valid, chunk_counts)
        counted = (num_tokens, num_chunks, blocks_per_chunk)
        launch(count_kernel, (num_chunks, 1, 1), (*inputs, *counted), sizes)
        launch(
            scatter_kernel,
            (num_chunks, 1, 1),
            (*inputs, token_idx, gates, offsets, slots, counts, overflow_flag(device).pair, *counted, capacity),
            {**sizes, "MAX_CHUNKS": MAX_CHUNKS, "FILL": 0 if max_pairs is None else FILL},
        )
    return token_idx, gates, offsets, slots, counts


@on_its_device
def select_backward(grad_gates: Tensor, logits: Tensor, slots: Tensor, added: Tensor | None = None) -> Tensor:
    """Gradient (S, E) float32 of the logits through the softmax, dense over the experts, plus what is ``added``."""
    num_tokens, num_experts = logits.shape
    _check_size(num_tokens, num_experts)
    expect("grad_gates", grad_gates, grad_gates.numel(), dtypes=(torch.float32,))
    expect("logits", logits, num_tokens, num_experts, dtypes=(torch.float32,))
    expect("slots", slots, num_tokens, num_experts, dtypes=(torch.int64,))
    expect("added", added, num_tokens, num_experts, dtypes=(torch.float32,))
    grad_gates, logits, slots = grad_gates.contiguous(), logits.contiguous(), slots.contiguous()
    added = None if added is None else added.contiguous()
    grad_logits = torch.empty_like(logits)
    launch(
        select_backward_kernel,
        (cdiv(num_tokens, BLOCK_S), 1, 1),
        (grad_gates, logits, slots, added, grad_logits, num_tokens),
        {**selection_constants(num_experts), "HAS_ADDED": added is not None},
    )
    return grad_logits


def selection_constants(num_experts: int) -> dict[str, int]:
    """Sizes and blocks of the programs of every kernel here."""
    return {"NUM_EXPERTS": num_experts, "PADDED_EXPERTS": power_of_2(max(2, num_experts)), "BLOCK_S": BLOCK_S}


def _check_size(num_tokens: int, num_experts: int) -> None:
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise ValueError(f"logits: expected 1 to {MAX_EXPERTS} experts, got {num_experts}")
    if num_tokens * num_experts >= 2**31:
        raise ValueError(f"logits: expected tokens * experts < 2**31, got {num_tokens} * {num_experts}")
