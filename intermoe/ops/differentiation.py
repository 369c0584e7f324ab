"""The whole operation outside of compilation: an ``autograd.Function`` that calls the backend itself.

That costs the host less than a registered operator and is what ``torch.func`` transforms; where something watches the
calls (``FlopCounterMode``, fake tensors) it calls the operators of ``operators.py``. Derivatives are first ones, in
reverse mode: what would need others raises.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from intermoe import backends
from intermoe.kernels.contract import Experts, Kind, Needs, Route, Saved, Select
from intermoe.ops import operators
from intermoe.ops.operators import INPUTS, grad_of_out, refuse

_INPUTS = len(INPUTS)


_SLOTS = Saved._fields.index("slots")


@dataclass(slots=True)
class _Rest:
    """What one call takes beside the inputs that get gradients."""

    select: Select | None
    normalise: bool
    recompute: bool
    half_sums: bool
    backend: str
    wrapped: bool = False
    """whether a transform of ``torch.func`` has a hand in it"""
    kept: tuple[Tensor, ...] = ()
    """what the forward leaves for its node to save: tensors of ``Saved`` that are no results, as those cost more"""

    def join(self, inputs: tuple[Any, ...]) -> tuple[Route, Experts]:
        """The arguments of the steps, of inputs in the order of ``Needs``."""
        return Route(*inputs[:5], self.normalise), Experts(*inputs[5:_INPUTS], self.recompute, self.half_sums)


def forward(
    route: Route, select: Select, experts: Experts, backend: str, kind: Kind | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``out``, ``counts``, ``logits`` and ``slots``; the first and the third are differentiable."""
    if kind is not None and torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        call = _Call(route, select, experts, backend, kind)
        out, logits, (counts, slots) = _apply(_Direct, call, *route[:5], *experts[:2])
        return out, counts, logits, slots
    out, counts, logits, slots = _Forward.run(*_split(route, select, experts, backend))
    return out, counts, logits, slots


def inference(route: Route, select: Select, experts: Experts, backend: str) -> tuple[Tensor, Tensor]:
    """``out`` and ``counts``."""
    out, counts = _Inference.run(*_split(route, select, experts, backend))
    return out, counts


def _is_wrapped(argument: Any) -> bool:
    return isinstance(argument, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(argument)


def _split(route: Route, select: Select, experts: Experts, backend: str) -> tuple[Any, ...]:
    hidden, weight, offset, scale, shift, normalise = route
    w_gate_up, w_down, recompute, half_sums = experts
    rest = _Rest(select, normalise, recompute, half_sums, backend)
    return rest, hidden, weight, offset, scale, shift, w_gate_up, w_down


def _apply(function: type[Function], *arguments: Any) -> Any:
    """``apply`` where nothing transforms the call, without its look for defaults, the most of its time."""
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


class _Function(Function):
    """A function without the derivatives that there are none of."""

    @classmethod
    def run(cls, rest: _Rest, *inputs: Any) -> tuple[Tensor, ...]:
        """``apply``, and where nothing transforms the call the faster one."""
        if torch._C._are_functorch_transforms_active() or any(map(_is_wrapped, inputs)):
            rest.wrapped = True
            return cls.apply(rest, *inputs)  # type: ignore[no-any-return, no-untyped-call]
        return _apply(cls, rest, *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        refuse("forward-mode differentiation")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> NoReturn:
        refuse("vmap")


class _Forward(_Function):
    """The operation where gradients may be asked for."""

    @staticmethod
    def forward(rest: _Rest, *inputs: Any) -> tuple[Tensor, ...]:
        route, experts = rest.join(inputs)
        if operators.is_watched(inputs):
            flat = operators.flatten(route, rest.select, experts, rest.backend)
            out, counts, *made = torch.ops.intermoe.moe_forward.default(*flat)
            saved = Saved(*made)
        else:
            out, counts, kept = backends.load(rest.backend).moe_forward(route, rest.select, experts)
            saved = kept.saved()
        rest.kept = (*saved[1:_SLOTS], *saved[_SLOTS + 1 :])
        return out, counts, saved.logits, saved.slots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rest = inputs[0]
        ctx.save_for_backward(*inputs[1:], *output[2:], *rest.kept)
        if rest.wrapped:  # transforms come here once for each of them
            rest = replace(rest)
        ctx.rest, rest.kept = rest, ()
        ctx.mark_non_differentiable(output[1], output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_logits = grads[0], grads[2]
        needs = Needs(*ctx.needs_input_grad[1:])
        if (grad_out is None and grad_logits is None) or not any(needs):
            return (None,) * (1 + _INPUTS)
        tensors = ctx.saved_tensors
        logits, slots, *kept = tensors[_INPUTS:]
        tensors = (*tensors[:_INPUTS], logits, *kept[: _SLOTS - 1], slots, *kept[_SLOTS - 1 :])
        if grad_out is None:
            grad_out = grad_of_out(tensors)
        arguments = (ctx.rest, needs, grad_out, grad_logits, *tensors)
        # only where a derivative of the gradient may be asked for must there be a node that refuses it
        derived = torch.is_grad_enabled() or forward_ad._current_level >= 0
        wrapped = ctx.rest.wrapped or _is_wrapped(grad_out)  # also after a transform of torch.func ended
        if not (derived or wrapped):
            return None, *_gradients(*arguments)
        found = _Backward.apply(*arguments)
        return None, *(grad if need else None for grad, need in zip(found, needs, strict=True))


def _gradients(
    rest: _Rest, needs: Needs, grad_out: Tensor, grad_logits: Tensor | None, *tensors: Any
) -> list[Tensor | None]:
    """Gradients in the order of ``Needs``; ``tensors``: the inputs in this order, then those of ``Saved``."""
    if operators.is_watched((grad_out, *tensors[:_INPUTS])):
        options = (rest.normalise, rest.recompute, list(needs), rest.backend)
        found = torch.ops.intermoe.moe_backward.default(grad_out, grad_logits, *tensors, *options)
        return [grad if need else None for grad, need in zip(found, needs, strict=True)]
    route, experts = rest.join(tensors)
    backend = backends.load(rest.backend)
    return backend.moe_backward(grad_out, grad_logits, route, experts, Saved(*tensors[_INPUTS:]), needs)


@functools.cache
def _needs(needed: tuple[bool, ...]) -> Needs:
    """Of the arguments of a function of autograd's, the first of which gets no gradient."""
    return Needs(*needed[1:])


class _Call(NamedTuple):
    """One plain call."""

    route: Route
    select: Select
    experts: Experts
    backend: str
    kind: Kind


class _Direct(Function):
    """The operation of plain tensors where gradients may be asked for and no hooks see what is saved.

    Its results: ``out`` and the logits, and a pair of counts and slots, which have no gradients and cost more as
    results of their own.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Any) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        route, select, experts, name, kind = call
        out, counts, kept = backends.load(name).moe_forward(route, select, experts, kind)
        logits, *others = kept
        # tensors that get gradients are autograd's to keep; the others no one else reads, so nothing watches over them
        ctx.save_for_backward(*inputs, logits)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.form, ctx.others = (name, kind, route.normalise, *experts[2:]), type(kept), others
        return out, logits, (counts, kept.slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_logits, _ = grads
        needs = _needs(ctx.needs_input_grad)
        if (grad_out is None and grad_logits is None) or not any(needs):
            return (None,) * (1 + _INPUTS)
        *inputs, logits = ctx.saved_tensors
        saved = ctx.form(logits, *ctx.others)
        spent = not torch._C._autograd._get_current_graph_task_keep_graph()
        if spent:
            ctx.others = None
        if grad_out is None:
            grad_out = grad_of_out(tuple(inputs))
        name, kind, normalise, recompute, half_sums = ctx.options
        derived = torch.is_grad_enabled() or forward_ad._current_level >= 0
        if derived or _is_wrapped(grad_out) or operators.is_watched((grad_out,)):
            rest = _Rest(None, normalise, recompute, half_sums, name)
            found = _Backward.apply(rest, needs, grad_out, grad_logits, *inputs, *saved.saved())
            return None, *(grad if need else None for grad, need in zip(found, needs, strict=True))
        route, experts = Route(*inputs[:5], normalise), Experts(*inputs[5:], recompute, half_sums)
        backend = backends.load(name)
        return None, *backend.moe_backward(grad_out, grad_logits, route, experts, saved, needs, kind, spent)


class _Backward(_Function):
    """Its gradient, which has none itself."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return operators.all_tensors(_gradients(*arguments), arguments[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        refuse("a second derivative")


class _Inference(_Function):
    """The operation where no gradient can be asked for."""

    @staticmethod
    def forward(rest: _Rest, *inputs: Any) -> tuple[Tensor, ...]:
        route, experts = rest.join(inputs)
        if operators.is_watched(inputs):
            flat = operators.flatten(route, rest.select, experts, rest.backend)
            return tuple(torch.ops.intermoe.moe_inference.default(*flat))
        return backends.load(rest.backend).moe_inference(route, rest.select, experts)
