"""What the operators promise without computing: shapes, operations, gradients of one result alone, choices recalled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from intermoe import InterMoEBlock, backends
from intermoe.kernels.contract import Needs, Saved
from intermoe.ops import exchange, flops, operators
from intermoe.ops.moe import Experts, Route, Select, moe, raise_on_overflow
from intermoe.ops.routing import Rule


def meta_call(dtype: torch.dtype = torch.float32, normalise: bool = True, **options: bool) -> tuple[Any, ...]:
    """Arguments of the operators for 5 tokens of width 4, 3 experts of width 6 and 5 rows, without data."""
    scale = torch.empty(5, 4, device="meta") if normalise else None
    route = Route(
        torch.empty(5, 4, device="meta"), torch.empty(3, 4, device="meta"), torch.empty(5, 3, device="meta"),
        scale, scale, normalise,
    )  # fmt: skip
    weights = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((3, 12, 4), (3, 4, 6)))
    return operators.flatten(route, Select(torch.empty(3, device="meta")), Experts(*weights, **options), "native")


@pytest.mark.parametrize(
    ("options", "kept", "pairs"),
    [
        ({}, 5, 15),
        ({"recompute": True}, 5, 0),  # pre-activations are computed again
        ({"normalise": False}, 0, 15),  # tokens are hidden itself
        ({"normalise": False, "dtype": torch.bfloat16}, 5, 15),  # but not in another type
    ],
)
def test_what_is_saved_has_the_promised_shapes(options: dict[str, Any], kept: int, pairs: int) -> None:
    out, counts, *saved = operators._forward_fake(*meta_call(**options))
    found = Saved(*saved)
    assert (out.shape, counts.shape) == ((5, 4), (3,))
    assert (found.tokens.shape, found.h.shape) == ((kept, 4), (pairs, 12))
    assert found.logits.shape == found.slots.shape == (5, 3)
    assert len(found.mean) == len(found.rstd) == (5 if options.get("normalise", True) else 0)


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_what_is_promised_is_what_a_backend_makes(
    hidden: torch.dtype, stored: torch.dtype, normalise: bool, recompute: bool
) -> None:
    """Shapes and types of results, of what is saved, and of gradients; every pair is chosen, so that P is known."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    rows = [torch.randn(5, 4)] * 2 if normalise else [None] * 2
    route = Route(torch.randn(5, 4, dtype=hidden), torch.randn(3, 4), torch.randn(5, 3), *rows, normalise)
    weights = (torch.randn(size, dtype=stored) for size in ((3, 12, 4), (3, 4, 6)))
    select = Select(None, torch.ones(5, 3, dtype=torch.bool))
    flat = operators.flatten(route, select, Experts(*weights, recompute), "native")
    meta = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in flat]

    def kinds(tensors: tuple[torch.Tensor, ...]) -> list[Any]:
        return [(tuple(t.shape), t.dtype) for t in tensors]

    made, promised = operators._forward(*flat), operators._forward_fake(*meta)
    assert kinds(made) == kinds(promised)
    assert kinds(operators._inference(*flat)) == kinds(operators._inference_fake(*meta)) == kinds(made[:2])
    needs = [each is not None for each in flat[:7]]
    options = (normalise, recompute, needs, "native")
    grads = operators._backward(torch.randn_like(made[0]), None, *flat[:7], *made[2:], *options)
    assert kinds(grads) == kinds(operators._backward_fake(promised[0], None, *meta[:7], *promised[2:], *options))


class Kept(torch.Tensor):
    """A tensor of a kind of its own."""


def test_what_transforms_or_watches_a_call_is_noticed() -> None:
    """Every way but none: modes and kinds of tensors that see operators, and those that transform what is computed."""
    x, given = torch.ones(2), (torch.ones(2), None, torch.nn.Parameter(torch.ones(2)))
    found = {"nothing": (operators.is_plain(given), operators.is_watched(given))}

    def look(name: str, tensors: tuple[Any, ...] = given) -> None:
        found[name] = operators.is_plain(tensors), operators.is_watched(tensors)

    with torch.utils.flop_counter.FlopCounterMode(display=False):
        look("a mode")
    with torch.autograd.forward_ad.dual_level():
        look("forward mode")
    torch.func.grad(lambda x: (look("a transform"), x.sum())[1])(x)
    look("no data", (x.to("meta"),))
    look("another kind", (x, x.as_subclass(Kept)))
    assert found == {
        "nothing": (True, False), "a mode": (False, True), "forward mode": (False, False),
        "a transform": (False, False), "no data": (False, True), "another kind": (False, True),
    }  # fmt: skip


def test_only_what_has_a_gradient_asks_for_one() -> None:
    """What is saved for the backward beside the logits is no result to go on with: its gradient would be lost."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    route = Route(*(torch.randn(size).requires_grad_() for size in ((5, 4), (3, 4), (5, 3), (5, 4), (5, 4))))
    weights = (torch.randn(size).requires_grad_() for size in ((3, 12, 4), (3, 4, 6)))
    flat = operators.flatten(route, Select(torch.full((3,), -0.3)), Experts(*weights), "native")
    made = torch.ops.intermoe.moe_forward(*flat)
    names = ("out", "counts", *Saved._fields)
    assert {name for name, each in zip(names, made, strict=True) if each.requires_grad} == {"out", "logits"}


@pytest.mark.parametrize("asked", Needs._fields)
def test_gradients_have_the_shapes_of_what_asked_for_them(asked: str) -> None:
    flat, needs = meta_call(), [name == asked for name in Needs._fields]
    saved = operators._forward_fake(*flat)[2:]
    found = operators._backward_fake(flat[5], None, *flat[:7], *saved, True, False, needs, "native")
    wanted = [given.shape if need else (0,) for given, need in zip(flat, needs, strict=False)]
    assert [grad.shape for grad in found] == wanted


def test_gradients_have_the_types_of_what_they_are_of() -> None:
    """Those of the router and its rows are in float32, whatever tokens and experts are in."""
    flat = list(meta_call(torch.bfloat16))
    flat[0] = flat[0].half()
    flat[1:5] = [each.double() for each in flat[1:5]]
    saved = operators._forward_fake(*flat)[2:]
    found = operators._backward_fake(flat[5], None, *flat[:7], *saved, True, False, [True] * 7, "native")
    wide, narrow = [torch.float32] * 4, [torch.bfloat16] * 2
    assert [grad.dtype for grad in found] == [torch.float16, *wide, *narrow]


def test_gradients_are_dense_however_the_inputs_lie() -> None:
    """As every backend makes them: code compiled for other strides would read them in another order."""
    flat = list(meta_call())
    flat[:7] = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in flat[:7]]
    assert not any(each.is_contiguous() for each in flat[:7])
    saved = operators._forward_fake(*flat)[2:]
    found = operators._backward_fake(flat[5], None, *flat[:7], *saved, True, False, [True] * 7, "native")
    assert all(grad.is_contiguous() for grad in found)


@pytest.mark.parametrize("rule", [None, Rule("expert_choice", 1.5, None, "batch", "frame", 1)])
def test_flat_arguments_are_those_that_were_given(rule: Rule | None) -> None:
    """The operators get all of a call, its limit of pairs and its options too."""
    *tensors, valid = (torch.empty(2) for _ in range(9))
    given = (
        Route(*tensors[:5], normalise=False),
        Select(tensors[5], valid, rule, max_pairs=7),
        Experts(*tensors[6:], recompute=True, half_sums=True),
        "native",
    )
    for found, wanted in zip(operators.unflatten(operators.flatten(*given)), given, strict=True):
        assert type(found) is type(wanted)
        assert all(a is b or (not isinstance(b, torch.Tensor) and a == b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("asked", "products", "router"),
    [("hidden", 3, 1), ("scale", 3, 1), ("router_weight", 1, 2), ("w_gate_up", 3, 0), ("w_down", 2, 0)],
)
def test_operations_of_a_backward_are_counted_by_what_is_asked(
    asked: str, products: int, router: int, recompute: bool
) -> None:
    """2 D F P a product of the 7 pairs, W_gate_up's being two at once; 2 S E D one with the router.

    There is room for 9, which is all that is known of slots without data.
    """
    slots = torch.where(torch.arange(15).view(5, 3) < 7, 0, -1)
    empty = torch.empty(0)
    saved = Saved(empty, empty, empty, empty, torch.zeros(9), empty, empty, slots, empty)
    needs = [name == asked for name in Needs._fields]
    for known, pairs in ((saved, 7), (saved._replace(slots=slots.to("meta")), 9)):
        found = flops.backward(empty, None, *meta_call()[:7], *known, True, recompute, needs, "native")
        assert found == 2 * (products + 2 * recompute) * pairs * 4 * 6 + 2 * router * 5 * 3 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_loss_of_the_logits_alone_reaches_hidden_and_router(backend: str, dtype: torch.dtype) -> None:
    """Experts in another type than the router have no part in it."""
    if not backends.available()[backend].usable:
        pytest.skip(f"{backend} backend: {backends.available()[backend].reason}")
    g = torch.Generator().manual_seed(0)
    hidden, router = (torch.randn(n, 4, generator=g).requires_grad_() for n in (5, 3))
    experts = Experts(torch.randn(3, 12, 4, generator=g).to(dtype), torch.randn(3, 4, 6, generator=g).to(dtype))
    weights = torch.randn(5, 3, generator=g)
    logits = moe(Route(hidden, router), Select(torch.full((3,), -0.5)), experts, backend=backend).logits
    assert logits is not None
    (logits * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, weights @ router.detach())
    torch.testing.assert_close(router.grad, weights.T @ hidden.detach())


def test_each_block_of_a_checkpoint_recalls_its_own_choice() -> None:
    """Of two in one checkpoint the first takes few pairs and the second nearly all."""
    torch.manual_seed(0)
    few, many = (InterMoEBlock(16, 4, 24, None, norm="none", bias_init=bias) for bias in (-0.9, -0.1))
    for block in (few, many):
        torch.nn.init.normal_(block.motion_router)
    hidden = torch.randn(1, 12, 16)

    def run(x: torch.Tensor) -> torch.Tensor:
        return many(x + few(x))

    found = []
    for again in (False, True):
        x = hidden.clone().requires_grad_()
        out = checkpoint(run, x, use_reentrant=False) if again else run(x)
        out.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "options", [{"max_pairs": 60}, {"max_pairs": None}, {"recompute": True}, {"routing": "expert_choice"}]
)
def test_a_forward_that_is_computed_again_is_the_same_call(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the choice in place of the bias or rule; every other option is that of the first time."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    package, made = backends.load("native"), []
    original = package.moe_forward

    def recorded(route: Route, select: Select, experts: Experts, *rest: Any) -> Any:
        made.append((route.normalise, select.max_pairs, experts[2:], select))
        return original(route, select, experts, *rest)

    monkeypatch.setattr(package, "moe_forward", recorded)
    block = InterMoEBlock(16, 4, 24, None, backend="native", **options)
    hidden = torch.randn(1, 12, 16, requires_grad=True)
    checkpoint(block, hidden, use_reentrant=False).sum().backward()
    (*first, given), (*again, recalled) = made
    assert first == again == [True, options.get("max_pairs"), (options.get("recompute", False), False)]
    assert (recalled.selection_bias, recalled.rule) == (None, None)
    assert (given.rule is not None) == ("routing" in options)
    assert torch.equal(recalled.valid.view(1, 12, 4), block.chosen_pairs(hidden))


def test_operations_are_counted_by_hand() -> None:
    """Of pairs that are known, else of as many as there is room for: all of them where nothing is kept."""
    hidden, router, w_down = torch.zeros(6, 4), torch.zeros(3, 4), torch.zeros(3, 4, 5)
    arguments = (hidden, router, None, None, None, torch.zeros(3, 10, 4), w_down)
    counts, routing = torch.tensor([2, 0, 1]), 2 * 6 * 3 * 4
    saved = [torch.zeros(0)] * len(Saved._fields)
    saved[Saved._fields.index("token_idx")] = torch.zeros(7)
    for known, pairs in ((counts, 3), (counts.to("meta"), 18)):
        assert flops.forward(*arguments, out_val=(hidden, known)) == routing + 6 * pairs * 4 * 5
    for known, pairs in ((counts, 3), (counts.to("meta"), 7)):
        assert flops.forward(*arguments, out_val=(hidden, known, *saved)) == routing + 6 * pairs * 4 * 5


def test_calls_that_are_alike_are_of_one_kind_and_others_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backend found out about a call is told again of the same call alone."""
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    loaded, seen = backends.load("native"), []
    plain = loaded.moe_inference
    monkeypatch.setattr(loaded, "moe_inference", lambda *given: (seen.append(given[3]), plain(*given))[1])
    g = torch.Generator().manual_seed(0)
    hidden, router = torch.randn(6, 4, generator=g), torch.randn(3, 4, generator=g)
    experts = Experts(torch.randn(3, 12, 4, generator=g), torch.randn(3, 4, 6, generator=g))
    bias, rule = torch.full((3,), -0.5), Rule("token_choice", 1.0, 2, "batch", "frame", 1)
    calls = (
        (Route(hidden, router), Select(bias)),
        (Route(hidden, router, normalise=False), Select(bias)),
        (Route(hidden, router), Select(bias, rule=rule)),
        (Route(hidden, router), Select(bias, max_pairs=18)),
        (Route(hidden[:5], router), Select(bias)),
    )
    for _ in range(2):
        for route, select in calls:
            moe(route, select, experts, backend="native")
    assert len({id(kind) for kind in seen}) == len(calls)
    assert [id(kind) for kind in seen[: len(calls)]] == [id(kind) for kind in seen[len(calls) :]]
    scaled = Route(hidden, router, scale=torch.zeros(1, 4), shift=torch.zeros(1, 4))
    moe(scaled, Select(bias), experts)
    with pytest.raises(ValueError, match="scale: expected None with normalise=False"):
        moe(scaled._replace(normalise=False), Select(bias), experts)


def test_a_call_is_on_one_device() -> None:
    """That of the tokens, whatever the others agree on, and though the same call was right a moment ago."""
    hidden, router, bias = torch.zeros(5, 4), torch.zeros(3, 4), torch.full((3,), -0.5)
    weights = [torch.zeros(3, 12, 4), torch.zeros(3, 4, 6)]
    away, weights_away = bias.to("meta"), [weight.to("meta") for weight in weights]
    moe(Route(hidden, router), Select(bias), Experts(*weights))
    for given, experts in ((away, weights), (bias, weights_away), (away, weights_away)):
        with pytest.raises(ValueError, match="hidden: expected all tensors on one device, got hidden on cpu"):
            moe(Route(hidden, router), Select(given), Experts(*experts))


@pytest.mark.parametrize("name", [*Route._fields[1:5], "selection_bias", "valid", "w_gate_up", "w_down"])
def test_any_argument_of_another_device_is_refused(name: str) -> None:
    """Kernels take pointers: memory of another device they would read as if it were of this one."""
    given: dict[str, torch.Tensor] = {
        "router_weight": torch.zeros(3, 4), "router_offset": torch.zeros(5, 3), "scale": torch.zeros(5, 4),
        "shift": torch.zeros(5, 4), "selection_bias": torch.full((3,), -0.5), "valid": torch.ones(5) > 0,
        "w_gate_up": torch.zeros(3, 12, 4), "w_down": torch.zeros(3, 4, 6),
    }  # fmt: skip

    def call() -> None:
        rows = (given[key] for key in Route._fields[1:5])
        select, experts = Select(given["selection_bias"], given["valid"]), Experts(given["w_gate_up"], given["w_down"])
        moe(Route(torch.zeros(5, 4), *rows), select, experts)

    call()
    given[name] = given[name].to("meta")
    with pytest.raises(ValueError, match=rf"^hidden: expected all tensors on one device, got .*{name} on meta"):
        call()


def test_overflow_is_asked_of_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, most in (("cpu", 3), ("meta", 9)):
        limit = exchange._Limit(torch.device("cpu"))
        limit.note(torch.tensor([most]), 5)
        found[torch.device(name)] = limit
    monkeypatch.setattr(exchange, "_limits", found)
    raise_on_overflow(torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"expected at most 5 \(token, expert\) pairs .*, got 9"):
        raise_on_overflow(torch.device("meta"))
    raise_on_overflow(), raise_on_overflow(torch.device("meta"))  # raised once
    found[torch.device("meta")].note(torch.tensor([5]), 5)  # a call that fits, after one that was told of
    raise_on_overflow(torch.device("meta"))
    found[torch.device("meta")].note(torch.tensor([7]), 5)  # and one that does not, if less than the first
    with pytest.raises(RuntimeError, match=r"expected at most 5 .*, got 7"):
        raise_on_overflow(torch.device("meta"))
