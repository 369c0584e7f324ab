"""Step 2, select: pairs of token and expert, ordered by expert, then token."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import library

_definitions = torch.library.Library("intermoe_native", "FRAGMENT")
_definitions.define(
    "select(Tensor logits, Tensor selection_bias, Tensor? valid) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def select(
    logits: Tensor, selection_bias: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose the pairs and their gates.

    Args:
        logits: (S, E) float32. selection_bias: (E,) float32. valid: (S,) bool or ``None``.

    Returns:
        token_idx (P,) int64, gates (P,) float32, expert_offsets (E + 1,) int64, slots (S, E) int64 with -1 where not
        selected, counts (E,) int64.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.intermoe_native.select(
        logits, selection_bias, valid
    )
    return result


def _select_cpu(
    logits: Tensor, selection_bias: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    native = library.load()
    num_tokens, num_experts = logits.shape
    logits = logits.contiguous()
    selection_bias = selection_bias.contiguous()
    valid_pointer = None if valid is None else (valid := valid.contiguous()).data_ptr()
    threads = torch.get_num_threads()
    slots = torch.empty(num_tokens, num_experts, dtype=torch.int64)
    counts = torch.empty(num_experts, dtype=torch.int64)
    offsets = torch.empty(num_experts + 1, dtype=torch.int64)
    scratch = torch.empty(native.intermoe_select_scratch(num_tokens), num_experts, dtype=torch.int64)
    library.check(
        native.intermoe_select_count_cpu(
            logits.data_ptr(),
            selection_bias.data_ptr(),
            valid_pointer,
            num_tokens,
            num_experts,
            slots.data_ptr(),
            counts.data_ptr(),
            offsets.data_ptr(),
            scratch.data_ptr(),
            threads,
        ),
        "select",
    )
    num_pairs = int(offsets[-1])
    token_idx = torch.empty(num_pairs, dtype=torch.int64)
    gates = torch.empty(num_pairs, dtype=torch.float32)
    library.check(
        native.intermoe_select_fill_cpu(
            logits.data_ptr(),
            num_tokens,
            num_experts,
            scratch.data_ptr(),
            slots.data_ptr(),
            token_idx.data_ptr(),
            gates.data_ptr(),
            threads,
        ),
        "select",
    )
    return token_idx, gates, offsets, slots, counts


def _select_fake(
    logits: Tensor, selection_bias: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_tokens, num_experts = logits.shape
    num_pairs = torch.library.get_ctx().new_dynamic_size()
    index = functools.partial(torch.empty, dtype=torch.int64, device=logits.device)
    gates = torch.empty(num_pairs, dtype=torch.float32, device=logits.device)
    return index(num_pairs), gates, index(num_experts + 1), index(num_tokens, num_experts), index(num_experts)


_definitions.impl("select", _select_cpu, "CPU")
torch.library.register_fake("intermoe_native::select", _select_fake, lib=_definitions)
