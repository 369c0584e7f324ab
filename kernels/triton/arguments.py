"""Checks of what the steps are given: the kernels read memory by these shapes and types and would not notice."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import INTERPRETED

_STORED = (torch.float32, torch.float16, torch.bfloat16)


def expect(name: str, tensor: Tensor | None, *shape: int, dtypes: tuple[torch.dtype, ...] = _STORED) -> None:
    """Raise ``TypeError`` for another dtype and ``ValueError`` for another shape; ``None`` is fine."""
    if tensor is None:
        return
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected {names}, got {tensor.dtype}")
    if INTERPRETED and tensor.dtype == torch.bfloat16:
        raise TypeError(
            f"{name}: expected float32 or float16, as Triton's interpreter computes bfloat16 wrongly, got it"
        )
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def expect_rows(name: str, tensor: Tensor | None, num_tokens: int, width: int) -> None:
    """``expect`` of (R, width) where R divides the number of tokens."""
    if tensor is not None:
        expect(name, tensor, len(tensor), width)
        expect_divisor(name, len(tensor), num_tokens)


def expect_divisor(name: str, rows: int, num_tokens: int) -> None:
    """Raise ``ValueError`` where each of so many rows does not stand for equally many tokens; no tokens have any."""
    if num_tokens > 0 and (rows < 1 or num_tokens % rows):
        raise ValueError(
            f"{name}: expected a number of rows that divides the number of tokens {num_tokens}, got {rows}"
        )


def expect_experts(
    tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> None:
    """The arguments of ``experts_forward``, which the backward shares."""
    (num_tokens, dim), (num_experts, _, width) = tokens.shape, w_down.shape
    expect("tokens", tokens, num_tokens, dim)
    expect("token_idx", token_idx, token_idx.numel(), dtypes=(torch.int64,))
    expect("expert_offsets", expert_offsets, num_experts + 1, dtypes=(torch.int64,))
    for name, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        if weight.dtype != tokens.dtype:
            raise TypeError(f"{name}: expected the dtype of tokens {tokens.dtype}, got {weight.dtype}")
    expect("w_gate_up", w_gate_up, num_experts, 2 * width, dim)
    expect("w_down", w_down, num_experts, dim, width)
