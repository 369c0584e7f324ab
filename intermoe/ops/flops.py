"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operators: matrix products, 2 a multiply-add."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from intermoe.kernels.contract import Needs, Saved

_PAIRS = Saved._fields.index("token_idx")


def _selected(numbers: Tensor, most: int) -> int:
    """How many pairs were selected; ``most``, where that is not known."""
    return int(numbers.sum()) if type(numbers) is Tensor and not numbers.is_meta else most


def forward(hidden: Tensor, router_weight: Tensor, *others: Any, out_val: Any, **_: Any) -> int:
    """Of ``moe_forward`` and ``moe_inference``, from their arguments and results."""
    tokens, (num_experts, dim) = len(hidden), router_weight.shape
    width = others[4].shape[2]
    most = len(out_val[2 + _PAIRS]) if len(out_val) > 2 else tokens * num_experts
    return 2 * tokens * num_experts * dim + 6 * _selected(out_val[1], most) * dim * width


def backward(grad_out: Tensor, grad_logits: Tensor | None, *flat: Any, **_: Any) -> int:
    """Of ``moe_backward``, from its arguments."""
    inputs, saved, (recompute, needs, _backend) = flat[:7], Saved(*flat[7:16]), flat[-3:]
    asked = Needs(*needs)
    tokens, (num_experts, dim), width = len(inputs[0]), inputs[1].shape, inputs[6].shape[2]
    pairs = _selected(saved.slots >= 0, len(saved.token_idx))
    products = 1 + 2 * (asked.w_gate_up + asked.tokens + recompute) + asked.w_down
    router = (asked.hidden or asked.tokens or asked.logits) + asked.router_weight
    return 2 * products * pairs * dim * width + 2 * router * tokens * num_experts * dim
