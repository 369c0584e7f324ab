"""Inputs of the block's operation, and every form of it that competes: backends, baselines, other projects' kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intermoe import backends
from intermoe.benchmarks import baselines, external
from intermoe.benchmarks.harness.case import Outputs
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops.moe import Experts, Route, Select, moe
from intermoe.ops.route import route_reference
from intermoe.ops.select import select_reference

PERSONS = 2
"""The published block is called once for each."""

MARGIN, PUSH = 1e-3, 0.05
"""How near a score may be to its threshold, some times the rounding of TF32; and how far a nearer logit is moved."""

LOADS = ("even", "one hot expert", "half the experts empty")


class Inputs(NamedTuple):
    """Tensors of ``intermoe.ops.moe.moe``."""

    hidden: Tensor
    router_weight: Tensor
    router_offset: Tensor
    scale: Tensor
    shift: Tensor
    selection_bias: Tensor
    w_gate_up: Tensor
    w_down: Tensor

    @property
    def weights(self) -> baselines.Weights:
        return baselines.Weights(self.w_gate_up, self.w_down)

    def leaves(self, *frozen: str) -> Inputs:
        """The same values, each to get a gradient but the selection bias and those named."""
        without = ("selection_bias", *frozen)
        return Inputs(*(t.detach().requires_grad_(n not in without) for n, t in zip(self._fields, self, strict=True)))

    def steps(self, max_pairs: int | None = None, **options: bool) -> tuple[Route, Select, Experts]:
        """Arguments of ``intermoe.ops.moe.moe``; the options are those of ``Experts``."""
        select = Select(self.selection_bias, max_pairs=max_pairs)
        return Route(*self[:5]), select, Experts(self.w_gate_up, self.w_down, **options)


def draw(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0, load: str = "even") -> Inputs:
    """Random inputs, drawn on the device, the selection settled at the shape's capacity.

    Args:
        load: one of ``LOADS``: how the pairs spread over the experts.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # where a threshold lies is not to be rounded
    try:
        return _drawn(shape, dtype, device, seed, load)
    finally:
        torch.set_float32_matmul_precision(precision)


def _drawn(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int, load: str) -> Inputs:
    g = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=g, device=device) * std

    tokens, dim, experts, width, rows = shape.tokens, shape.dim, shape.experts, shape.width, shape.rows
    hidden = normal(tokens, dim).to(dtype)
    router_weight, router_offset = normal(experts, dim, std=dim**-0.5), normal(rows, experts, std=0.1)
    scale, shift = normal(rows, dim, std=0.1), normal(rows, dim, std=0.1)
    _, logits = route_reference(hidden, router_weight, router_offset, None, None, normalise=False)
    bias = settled_bias(logits, _taken(shape, load))
    return Inputs(
        _clear_of_thresholds(hidden, router_weight, router_offset, bias),
        router_weight,
        router_offset,
        scale,
        shift,
        bias,
        normal(experts, 2 * width, dim, std=dim**-0.5).to(dtype),
        normal(experts, dim, width, std=width**-0.5).to(dtype),
    )


def _clear_of_thresholds(hidden: Tensor, router_weight: Tensor, router_offset: Tensor, bias: Tensor) -> Tensor:
    """``hidden`` with every logit pushed away from its expert's threshold, to the side on which it is.

    Then all forms select the same pairs, however they round their logits, and their results can be compared.
    """
    direction = router_weight / router_weight.square().sum(1, keepdim=True)
    contested = (bias > -1) & (bias < 0)
    for _ in range(20):
        _, logits = route_reference(hidden, router_weight, router_offset, None, None, normalise=False)
        margin = torch.sigmoid(logits) + bias
        close = (margin.abs() < MARGIN) & contested
        if not bool(close.any()):
            break
        push = torch.where(margin > 0, PUSH, -PUSH) * close
        hidden = (hidden.float() + push @ direction).to(hidden.dtype)
    return hidden


def _taken(shape: Shape, load: str) -> list[int]:
    """Tokens that each expert takes."""
    tokens, experts, pairs = shape.tokens, shape.experts, shape.pairs
    if load == "even":
        return [pairs // experts] * experts
    if load == "one hot expert":
        hot = min(pairs, tokens)
        return [hot] + [(pairs - hot) // max(experts - 1, 1)] * (experts - 1)
    if load == "half the experts empty":
        busy = experts - experts // 2
        return [min(pairs // busy, tokens)] * busy + [0] * (experts - busy)
    raise ValueError(f"load: expected one of {LOADS}, got {load!r}")


def settled_bias(logits: Tensor, taken: list[int]) -> Tensor:
    """Biases at which expert e takes ``taken[e]`` tokens."""
    num_tokens = logits.shape[0]
    bias = torch.empty(logits.shape[1], device=logits.device)
    for expert, count in enumerate(taken):
        if count <= 0 or count >= num_tokens:
            bias[expert] = -1.0 if count <= 0 else 0.0
            continue
        scores = torch.sigmoid(logits[:, expert].float()).sort(descending=True).values
        bias[expert] = -(scores[count - 1] + scores[count]) / 2
    return bias


@dataclass(frozen=True)
class Form:
    """One way to compute it: ``call`` of inputs, with weights of its own in ``parameters``.

    ``note`` is set for a form that computes something else, and says what.
    """

    call: Callable[[Inputs], Tensor]
    parameters: tuple[Tensor, ...] = ()
    note: str = ""


def usable_backends(device: torch.device, dtype: torch.dtype) -> tuple[list[str], dict[str, str]]:
    """Backends that serve tensors of this kind, the default first; and the reason of each that does not."""
    best = backends.resolve(device, dtype)
    names, reasons = [best], {}
    for name in backends.NAMES:
        if name == best:
            continue
        try:
            names.append(backends.resolve(device, dtype, name))
        except RuntimeError as error:
            reasons[name] = str(error).splitlines()[0].removesuffix(". Backends on this machine:")
    return names, reasons


def competitors(shape: Shape, inputs: Inputs, *, everything: bool = True) -> tuple[dict[str, Form], dict[str, str]]:
    """All that can run here, ours first, and why the others cannot.

    The default backend and the baselines; with ``everything`` also the other backends and ways to save memory.
    """
    device, dtype = inputs.hidden.device, inputs.hidden.dtype
    names, skipped = usable_backends(device, dtype)
    timed = names if everything else names[:1]
    forms = {name: ours(backend=name) for name in timed}
    if everything and names[0] != "reference":
        forms[f"{names[0]}, recompute"] = ours(backend=names[0], recompute=True)
    if "triton" in names:
        room = round(1.25 * shape.pairs) + shape.experts
        forms["triton, static"] = ours(backend="triton", max_pairs=room)
        if dtype == torch.float16:
            forms["triton, half sums"] = ours(backend="triton", half_sums=True)
    forms["authors' form"] = Form(published)
    forms["expert loop"] = on_sorted_rows(baselines.expert_loop)
    if baselines.HAS_GROUPED_MM:
        forms["grouped_mm"] = on_sorted_rows(baselines.grouped_mm)
        if everything and device.type == "cuda":  # the way torchtitan runs its experts
            compiled = torch.compile(baselines.swiglu, dynamic=True)
            forms["grouped_mm, compiled"] = on_sorted_rows(baselines.grouped_mm, activation=compiled)
    else:
        skipped["grouped_mm"] = f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
    forms["dense network"] = Form(lambda x: baselines.dense_ffn(x.hidden, x.weights), note="no routing")
    for name, adapter in external.ADAPTERS.items():
        try:
            call, parameters = adapter(shape, inputs)
        except Exception as error:  # whatever another project raises is the reason to go on without it
            skipped[name] = " ".join(str(error).split()) or type(error).__name__
        else:
            forms[name] = Form(call, parameters, note="own weights")
    return forms, skipped


def ours(backend: str | None = None, **options: Any) -> Form:
    """The block's operation on a backend, or on the default one; the options are those of ``Inputs.steps``."""
    return Form(lambda x: moe(*x.steps(**options), backend=backend).out)


def published(x: Inputs) -> Tensor:
    """The authors' form behind plain routing, one call for each person."""
    tokens, logits = route_reference(*x[:5])
    size = -(-len(tokens) // PERSONS)
    persons = zip(tokens.split(size), logits.split(size), strict=True)
    return torch.cat([baselines.authors_form(*person, x.selection_bias, x.weights) for person in persons])


def on_sorted_rows(experts: Callable[..., Tensor], **options: Any) -> Form:
    """A baseline that takes rows sorted by expert, behind plain routing."""

    def call(x: Inputs) -> Tensor:
        tokens, logits = route_reference(*x[:5])
        return experts(tokens, select_reference(logits, x.selection_bias), x.weights, **options)

    return Form(call)


def forward(form: Form, sets: list[Inputs]) -> Callable[[int], Outputs]:
    """The form without gradients."""

    def call(number: int) -> Outputs:
        with torch.no_grad():
            return (form.call(sets[number]),)

    return call


def training(form: Form, sets: list[Inputs], grads: list[Tensor]) -> Callable[[int], Outputs]:
    """The form and its gradients with respect to everything that has one."""

    def call(number: int) -> Outputs:
        leaves = sets[number].leaves()
        out = form.call(leaves)
        wanted = [*form.parameters, *(leaf for leaf in leaves if leaf.requires_grad)]
        found = torch.autograd.grad(out, wanted, grads[number], allow_unused=bool(form.note))
        return (out.detach(), *(grad for grad in found if grad is not None))

    return call
