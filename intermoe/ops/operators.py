"""The whole operation as a compiler sees it: registered operators in the namespace ``intermoe``, and their gradient.

They are called under ``torch.compile`` and wherever else calls are watched (``FlopCounterMode``, fake tensors); their
arguments are one flat list. Elsewhere ``differentiation.py`` calls the backend itself.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from intermoe import backends
from intermoe.kernels.contract import Experts, Grads, Needs, Route, Saved, Select
from intermoe.ops import flops
from intermoe.ops.routing import Rule

Flat = tuple[Any, ...]
INPUTS = Needs._fields
"""The arguments that get gradients, which come first."""

_INPUTS = len(INPUTS)
_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))


def flatten(route: Route, select: Select, experts: Experts, backend: str) -> Flat:
    """The arguments in the order of the operators' schema: first the inputs that get gradients, as in ``Needs``."""
    *inputs, normalise = route
    w_gate_up, w_down, *options = experts
    rule = select.rule if isinstance(select.rule, Rule) else Rule("", 0.0, None, "", "", 0)
    return (
        *inputs, w_gate_up, w_down, select.selection_bias, select.valid,
        normalise, *options, select.max_pairs, *rule, backend,
    )  # fmt: skip


def unflatten(flat: Flat) -> tuple[Route, Select, Experts, str]:
    """What ``flatten`` was given."""
    inputs, (bias, valid, normalise, *options, max_pairs) = flat[:_INPUTS], flat[_INPUTS:-7]
    rule = Rule(*flat[-7:-1])
    select = Select(bias, valid, rule if rule.routing else None, max_pairs)
    return Route(*inputs[:5], normalise), select, Experts(*inputs[5:], *options), flat[-1]


def is_plain(tensors: tuple[Any, ...]) -> bool:
    """Whether nothing transforms or watches a call of these, hidden first, so that it needs no operator."""
    if torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    if torch._C._are_functorch_transforms_active() or tensors[0].is_meta:
        return False
    return _PLAIN.issuperset(map(type, tensors))


def is_watched(tensors: tuple[Any, ...]) -> bool:
    """Whether something must see an operator's call: a dispatch mode, or tensors of a kind of their own."""
    if torch._C._len_torch_dispatch_stack() or tensors[0].is_meta:
        return True
    return not _PLAIN.issuperset(map(type, tensors))


def refuse(what: str) -> NoReturn:
    """Raise ``RuntimeError`` for a derivative that there is none of."""
    raise RuntimeError(
        f"InterMoEBlock: expected first derivatives in reverse mode, got {what}; "
        f"only backends.use({backends.REFERENCE!r}) has others"
    )


def grad_of_out(inputs: tuple[Tensor, ...]) -> Tensor:
    """The gradient (S, D) of an output that nothing depends on, from the inputs that get gradients."""
    return inputs[0].new_zeros(inputs[0].shape, dtype=inputs[_INPUTS - 1].dtype)


def all_tensors(grads: Grads, like: Tensor) -> tuple[Tensor, ...]:
    """The gradients with an empty tensor for those that were not asked for: an operator returns tensors."""
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)


def _forward(*flat: Any) -> tuple[Tensor, ...]:
    route, select, experts, backend = unflatten(flat)
    out, counts, saved = backends.load(backend).moe_forward(route, select, experts)
    return out, counts, *saved


def _inference(*flat: Any) -> tuple[Tensor, Tensor]:
    route, select, experts, backend = unflatten(flat)
    return backends.load(backend).moe_inference(route, select, experts)


def _backward(grad_out: Tensor, grad_logits: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    inputs, rest = flat[:_INPUTS], flat[_INPUTS:]
    saved, (normalise, recompute, needs, backend) = Saved(*rest[:-4]), rest[-4:]
    route, experts = Route(*inputs[:5], normalise), Experts(*inputs[5:], recompute)
    grads = backends.load(backend).moe_backward(grad_out, grad_logits, route, experts, saved, Needs(*needs))
    return all_tensors(grads, route.hidden)


def _forward_fake(*flat: Any) -> tuple[Tensor, ...]:
    route, select, experts, backend = unflatten(flat)
    hidden, w_gate_up = route.hidden, experts.w_gate_up
    (num_tokens, dim), num_experts = hidden.shape, len(route.router_weight)
    num_pairs: Any = num_tokens * num_experts
    if not hidden.is_meta:  # meta tensors have no data to depend on
        num_pairs = backends.load(backend).allocated_pairs(num_tokens, num_experts, select.max_pairs)
        if num_pairs is None:
            num_pairs = torch.library.get_ctx().new_dynamic_size()
    wide = functools.partial(torch.empty, dtype=torch.float32, device=hidden.device)
    index = functools.partial(torch.empty, dtype=torch.int64, device=hidden.device)
    kept = num_tokens if route.normalise or hidden.dtype != w_gate_up.dtype else 0
    statistics = num_tokens if route.normalise else 0
    h = w_gate_up.new_empty(0 if experts.recompute else num_pairs, w_gate_up.shape[1])
    return (
        w_gate_up.new_empty(num_tokens, dim), index(num_experts),
        wide(num_tokens, num_experts), w_gate_up.new_empty(kept, dim), wide(statistics), wide(statistics),
        index(num_pairs), wide(num_pairs), index(num_experts + 1), index(num_tokens, num_experts), h,
    )  # fmt: skip


def _inference_fake(*flat: Any) -> tuple[Tensor, Tensor]:
    hidden, router_weight, w_down = flat[0], flat[1], flat[_INPUTS - 1]
    return w_down.new_empty(hidden.shape), torch.empty(len(router_weight), dtype=torch.int64, device=hidden.device)


def _backward_fake(grad_out: Tensor, grad_logits: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    inputs, needs = flat[:_INPUTS], flat[-2]
    hidden, *router, w_gate_up, w_down = inputs
    kinds = [(t, t.dtype) for t in (hidden, w_gate_up, w_down)]
    kinds[1:1] = [(t, torch.float32) for t in router]
    return tuple(
        torch.empty_like(t, dtype=dtype, memory_format=torch.contiguous_format)
        if need and t is not None
        else hidden.new_empty(0)
        for (t, dtype), need in zip(kinds, needs, strict=True)
    )


def _setup_context(ctx: Any, inputs: Flat, output: tuple[Tensor, ...]) -> None:
    route, _, experts, backend = unflatten(inputs)
    ctx.options = (route.normalise, experts.recompute, backend)
    ctx.save_for_backward(*inputs[:_INPUTS], *output[2:])
    ctx.mark_non_differentiable(output[1], *output[3:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments, from those of ``out`` and of the logits."""
    grad_out, grad_logits = grads[0], grads[2]
    needed = ctx.needs_input_grad
    if (grad_out is None and grad_logits is None) or not any(needed[:_INPUTS]):
        return (None,) * len(needed)
    tensors = ctx.saved_tensors
    normalise, recompute, backend = ctx.options
    needs = [bool(need) for need in needed[:_INPUTS]]
    if grad_out is None:
        grad_out = grad_of_out(tensors)
    options = (normalise, recompute, needs, backend)
    found = torch.ops.intermoe.moe_backward(grad_out, grad_logits, *tensors, *options)
    given = (grad if need else None for grad, need in zip(found, needs, strict=True))
    return (*given, *(None,) * (len(needed) - _INPUTS))


_ARGUMENTS = (
    "Tensor hidden, Tensor router_weight, Tensor? router_offset, Tensor? scale, Tensor? shift, "
    "Tensor w_gate_up, Tensor w_down"
)
_SELECTED = (
    "Tensor? selection_bias, Tensor? valid, bool normalise, bool recompute, bool half_sums, SymInt? max_pairs, "
    "str routing, float capacity, int? top_k, str pool, str unit, SymInt batch, str backend"
)
_SAVED = ", ".join(f"Tensor {name}" for name in Saved._fields)
_library = torch.library.Library("intermoe", "DEF")
for _schema, _implementation, _fake in (
    (
        f"moe_forward({_ARGUMENTS}, {_SELECTED}) -> ({', '.join(['Tensor'] * (2 + len(Saved._fields)))})",
        _forward,
        _forward_fake,
    ),
    (f"moe_inference({_ARGUMENTS}, {_SELECTED}) -> (Tensor, Tensor)", _inference, _inference_fake),
    (
        f"moe_backward(Tensor grad_out, Tensor? grad_logits, {_ARGUMENTS}, {_SAVED}, bool normalise, bool recompute, "
        f"bool[] needs, str backend) -> ({', '.join(['Tensor'] * _INPUTS)})",
        _backward,
        _backward_fake,
    ),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema)
    for _device in ("CPU", "CUDA"):
        # Where a graph breaks at the operator it runs as it is; its Python is not to be traced in turn.
        _library.impl(_name, torch.compiler.disable(_implementation), _device)
    torch.library.register_fake(f"intermoe::{_name}", _fake, lib=_library)
torch.library.register_autograd("intermoe::moe_forward", _differentiate, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(
    "intermoe::moe_backward", lambda ctx, *grads: refuse("a second derivative"), lib=_library
)
for _name, _flops in (
    ("moe_forward", flops.forward),
    ("moe_inference", flops.forward),
    ("moe_backward", flops.backward),
):
    register_flop_formula(getattr(torch.ops.intermoe, _name), get_raw=True)(_flops)
