"""The step references: gradients in float64, invariants, and refusals of bad arguments."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from intermoe.ops.checks import is_transformed, unwrapped
from intermoe.ops.combine import check_combine, combine_reference
from intermoe.ops.exchange import plan_exchange
from intermoe.ops.experts import check_experts, experts_reference
from intermoe.ops.moe import Experts, Route, Select, moe, moe_reference
from intermoe.ops.recomputation import is_watched
from intermoe.ops.route import check_route, fuse, route_reference
from intermoe.ops.routing import choose_pairs, load_balance_loss, router_z_loss
from intermoe.ops.select import check_logits, select_reference


def arguments(
    tokens: int, dim: int, experts: int, expert_dim: int, rows: int = 1, seed: int = 0, bias: float = -0.5
) -> dict[str, Tensor]:
    """Float64 inputs of ``moe`` with logits wide enough that tokens take anything from no expert to all."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * scale

    return {
        "hidden": draw(tokens, dim),
        "router_weight": draw(experts, dim, scale=1.5 * dim**-0.5),
        "router_offset": draw(rows, experts, scale=0.5),
        "scale": draw(rows, dim, scale=0.2),
        "shift": draw(rows, dim, scale=0.2),
        "selection_bias": torch.full((experts,), bias, dtype=torch.float64),
        "w_gate_up": draw(experts, 2 * expert_dim, dim, scale=dim**-0.5),
        "w_down": draw(experts, dim, expert_dim, scale=expert_dim**-0.5),
    }


def steps(given_: dict[str, Tensor], valid: Tensor | None = None) -> tuple[Route, Select, Experts]:
    """Arguments of ``moe``."""
    names = ("hidden", "router_weight", "router_offset", "scale", "shift")
    select = Select(given_["selection_bias"], valid)
    return Route(*(given_[name] for name in names)), select, Experts(given_["w_gate_up"], given_["w_down"])


def test_gradients_match_finite_differences() -> None:
    given_ = arguments(6, 4, 3, 5, rows=2)
    selection = select_reference(
        route_reference(*(given_[k] for k in ("hidden", "router_weight", "router_offset", "scale", "shift")))[1],
        given_["selection_bias"],
    )
    per_token = (selection.slots >= 0).sum(1)
    assert per_token.min() == 0 or per_token.min() < per_token.max(), "routing must not be trivial"
    leaves = {k: v.requires_grad_() for k, v in given_.items() if k != "selection_bias"}
    names = list(leaves)

    def run(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return moe_reference(*steps({**named, "selection_bias": given_["selection_bias"]})).out

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


def test_gradients_without_normalisation_and_with_padding() -> None:
    given_ = arguments(5, 3, 2, 3)
    valid = torch.tensor([True, False, True, True, False])
    hidden = given_["hidden"].requires_grad_()
    weight = given_["router_weight"].requires_grad_()

    def run(h: Tensor, w: Tensor) -> Tensor:
        _, select, experts = steps(given_, valid)
        return moe_reference(Route(h, w, normalise=False), select, experts).out

    assert torch.autograd.gradcheck(run, (hidden, weight))
    out = run(hidden, weight)
    assert (out[~valid] == 0).all()
    out.sum().backward()
    assert (hidden.grad[~valid] == 0).all()


def test_moe_is_the_written_sum() -> None:
    a = arguments(7, 4, 3, 5, rows=7)
    out, counts, *_ = moe_reference(*steps(a))
    mean = a["hidden"].mean(1, keepdim=True)
    std = (a["hidden"].var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    tokens = (a["hidden"] - mean) / std * (1 + a["scale"]) + a["shift"]
    taken = torch.zeros(3, dtype=torch.int64)
    for s in range(7):
        logits = torch.stack([a["router_weight"][e] @ a["hidden"][s] + a["router_offset"][s, e] for e in range(3)])
        expected = torch.zeros(4, dtype=torch.float64)
        for e in range(3):
            if 1 / (1 + torch.exp(-logits[e])) + a["selection_bias"][e] > 0:
                taken[e] += 1
                gate, up = a["w_gate_up"][e, :5] @ tokens[s], a["w_gate_up"][e, 5:] @ tokens[s]
                mlp = a["w_down"][e] @ (gate / (1 + torch.exp(-gate)) * up)
                expected += torch.exp(logits[e]) / torch.exp(logits).sum() * mlp
        torch.testing.assert_close(out[s], expected)
    assert torch.equal(counts, taken)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    experts=st.integers(1, 9),
    bias=st.sampled_from([-0.999, -0.6, -0.5, -0.3, -0.001]),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_selection_invariants(tokens: int, experts: int, bias: float, padded: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g) * 2
    valid = torch.rand(tokens, generator=g) > 0.3 if padded else None
    s = select_reference(logits, torch.full((experts,), bias), valid)
    selected = torch.sigmoid(logits) + bias > 0
    if valid is not None:
        selected &= valid[:, None]
    assert torch.equal(s.slots >= 0, selected)
    assert s.expert_offsets[0] == 0
    assert s.expert_offsets[-1] == s.token_idx.numel()
    assert torch.equal(s.expert_offsets.diff(), s.counts)
    assert torch.equal(s.slots[s.slots >= 0].sort().values, torch.arange(s.token_idx.numel()))
    for e in range(experts):
        mine = s.token_idx[s.expert_offsets[e] : s.expert_offsets[e + 1]]
        assert torch.equal(mine, selected[:, e].nonzero().squeeze(1))
        assert torch.equal(s.gates[s.slots[mine, e]], torch.softmax(logits, 1)[mine, e])


def test_nan_selects_nothing() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [1.0, 1.0]])
    s = select_reference(logits, torch.full((2,), -0.5))
    assert s.slots[0, 0] == -1
    assert s.counts.tolist() == [1, 2]


@pytest.mark.parametrize(("bias", "expected"), [(-0.999999, 0), (-1e-6, 24)])
def test_no_pairs_and_all_pairs(bias: float, expected: int) -> None:
    a = arguments(8, 4, 3, 5, bias=bias)
    a["router_weight"] *= 0.1
    out, counts, *_ = moe_reference(*steps(a))
    assert counts.sum() == expected
    assert (out == 0).all() == (expected == 0)


def test_permuting_tokens_permutes_the_output() -> None:
    a = arguments(12, 6, 4, 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    out, counts, *_ = moe_reference(*steps(a))
    permuted, permuted_counts, *_ = moe_reference(*steps({**a, "hidden": a["hidden"][order]}))
    torch.testing.assert_close(permuted, out[order])
    assert torch.equal(counts, permuted_counts)


def test_the_block_in_bfloat16_agrees_with_grouped_products(relative_error, tolerance) -> None:
    """An independent formulation, with gradients: torch's grouped product on sorted rows, then a scatter."""
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None)
    if grouped_mm is None:
        pytest.skip("this torch has no torch.nn.functional.grouped_mm")
    given_ = {name: value.float() for name, value in arguments(40, 32, 4, 48, rows=2).items()}
    given_["selection_bias"][1] = -0.9999  # an expert that takes nobody
    low = {name: value.bfloat16().requires_grad_() for name, value in given_.items() if name != "selection_bias"}
    bias = given_["selection_bias"]
    tokens, logits = route_reference(*(low[k] for k in ("hidden", "router_weight", "router_offset", "scale", "shift")))
    expert, token = (torch.sigmoid(logits) + bias > 0).T.nonzero(as_tuple=True)
    counts = torch.bincount(expert, minlength=4)
    assert counts[1] == 0
    assert counts.sum() > 40
    ends = counts.cumsum(0).int()
    gate, up = grouped_mm(tokens[token], low["w_gate_up"].transpose(1, 2), offs=ends).chunk(2, dim=-1)
    outputs = grouped_mm(torch.nn.functional.silu(gate) * up, low["w_down"].transpose(1, 2), offs=ends)
    weighted = outputs.float() * torch.softmax(logits, dim=-1)[token, expert, None]
    expected = torch.zeros(40, 32).index_add(0, token, weighted)
    found, found_counts, *_ = moe_reference(*steps({**low, "selection_bias": bias}))
    assert torch.equal(found_counts, counts)
    assert relative_error(found, expected) < tolerance(torch.bfloat16)
    grad = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    wanted = torch.autograd.grad(expected, list(low.values()), grad, retain_graph=True)
    for name, got, want in zip(
        low, torch.autograd.grad(found, list(low.values()), grad.bfloat16()), wanted, strict=True
    ):
        assert relative_error(got, want) < tolerance(torch.bfloat16), name


def test_combine_sums_over_experts() -> None:
    expert_out = torch.arange(8.0).reshape(4, 2)
    slots = torch.tensor([[0, 2], [-1, 3], [-1, -1], [1, -1]])
    gates = torch.tensor([1.0, 2.0, 3.0, 4.0])
    out = combine_reference(expert_out, gates, slots)
    expected = torch.stack([expert_out[0] + 3 * expert_out[2], 4 * expert_out[3], torch.zeros(2), 2 * expert_out[1]])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        combine_reference(expert_out, torch.ones(4), slots), combine_reference(expert_out, None, slots)
    )


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_fuse_weighs_motion_against_text(alpha: float | None) -> None:
    a = arguments(6, 4, 3, 5, rows=2)
    text_logits = a["router_offset"]
    weight, offset = fuse(a["router_weight"], text_logits, alpha)
    _, logits = route_reference(a["hidden"], weight, offset, None, None, normalise=False)
    motion = a["hidden"] @ a["router_weight"].T
    text = text_logits.repeat_interleave(3, dim=0)
    expected = motion + text if alpha is None else alpha * motion + (1 - alpha) * text
    torch.testing.assert_close(logits, expected)


HIDDEN, WEIGHT = torch.zeros(6, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: route_reference(HIDDEN[0], WEIGHT, None, None, None),
            ValueError,
            r"hidden: expected shape \(S, D\), got \(4,\)",
        ),
        (lambda: route_reference("x", WEIGHT, None, None, None), TypeError, "hidden: expected a tensor"),
        (lambda: route_reference(HIDDEN, WEIGHT[:, :3], None, None, None), ValueError, r"router_weight: .*\(3, 3\)"),
        (
            lambda: route_reference(HIDDEN, WEIGHT, torch.zeros(4, 3), None, None),
            ValueError,
            "router_offset: .* divides .* 6, got 4",
        ),
        (lambda: route_reference(HIDDEN, WEIGHT, None, torch.zeros(1, 4), None), ValueError, "scale and shift"),
        (lambda: select_reference(WEIGHT, torch.zeros(3)), ValueError, r"selection_bias: expected shape \(4,\)"),
        (lambda: select_reference(WEIGHT, None), ValueError, r"valid: expected the choice \(S, E\) .*, got None"),
        (
            lambda: select_reference(WEIGHT, None, torch.ones(3) > 0),
            ValueError,
            r"valid: expected shape \(3, 4\), got \(3,\)",
        ),
        (
            lambda: select_reference(WEIGHT, torch.zeros(4), torch.zeros(3)),
            TypeError,
            "valid: expected dtype torch.bool",
        ),
        (lambda: combine_reference(HIDDEN, None, torch.zeros(2, 2)), TypeError, "slots: expected dtype torch.int64"),
        (lambda: combine_reference(HIDDEN, None, torch.zeros(2, 2).int()), TypeError, "slots: .* got torch.int32"),
        (
            lambda: route_reference(HIDDEN, WEIGHT[:0].new_empty(3, 4, device="meta"), None, None, None),
            ValueError,
            "hidden: expected all tensors on one device, got hidden on cpu, router_weight on meta",
        ),
        (
            lambda: combine_reference(HIDDEN, torch.zeros(5), torch.zeros(2, 2).long()),
            ValueError,
            "gates: expected shape",
        ),
        (
            lambda: experts_reference(
                HIDDEN, torch.zeros(0).long(), torch.zeros(3).long(), torch.zeros(2, 10, 4), torch.zeros(2, 4, 6)
            ),
            ValueError,
            r"w_gate_up: expected shape \(2, 12, 4\), got \(2, 10, 4\)",
        ),
        (
            lambda: experts_reference(
                HIDDEN, torch.zeros(0).long(), torch.zeros(3).long(), torch.zeros(2, 12, 4).half(), torch.zeros(2, 4, 6)
            ),
            TypeError,
            "w_gate_up: expected the dtype of tokens",
        ),
        (
            lambda: experts_reference(
                HIDDEN, torch.zeros(0).int(), torch.zeros(3).long(), torch.zeros(2, 12, 4), torch.zeros(2, 4, 6)
            ),
            TypeError,
            "token_idx: expected dtype torch.int64",
        ),
        (
            lambda: experts_reference(
                HIDDEN, torch.zeros(0).long(), torch.zeros(3).int(), torch.zeros(2, 12, 4), torch.zeros(2, 4, 6)
            ),
            TypeError,
            r"^expert_offsets: expected dtype torch\.int64, got torch\.int32$",
        ),
        (
            lambda: experts_reference(
                HIDDEN, torch.zeros(0).long(), torch.zeros(3).long(), torch.zeros(2, 12, 4), torch.zeros(2, 4, 6).half()
            ),
            TypeError,
            r"^w_down: expected the dtype of tokens torch\.float32, got torch\.float16$",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_scale_without_normalisation_is_refused() -> None:
    route, *others = steps(arguments(6, 4, 3, 5))
    with pytest.raises(ValueError, match="scale: expected None with normalise=False"):
        moe(route._replace(normalise=False), *others)


TWO = torch.zeros(2).long()
GIVEN: dict[str, tuple[Callable[..., object], dict[str, tuple[Tensor, str]]]] = {
    "route": (
        check_route,
        {
            "hidden": (HIDDEN, "(S, D)"), "router_weight": (WEIGHT, "(E, 4)"),
            "router_offset": (torch.zeros(2, 3), "(R, 3)"), "scale": (torch.zeros(2, 4), "(R, 4)"),
            "shift": (torch.zeros(2, 4), "(R, 4)"),
        },
    ),
    "select": (
        lambda logits, selection_bias, valid: select_reference(logits, selection_bias, valid),
        {
            "logits": (torch.zeros(6, 4), "(S, E)"), "selection_bias": (torch.zeros(4), "(4,)"),
            "valid": (torch.ones(6) > 0, "(6,)"),
        },
    ),
    "experts": (
        check_experts,
        {
            "tokens": (HIDDEN, "(S, D)"), "token_idx": (TWO, "(P,)"), "expert_offsets": (TWO, "(2,)"),
            "w_gate_up": (torch.zeros(1, 10, 4), "(1, 10, 4)"), "w_down": (torch.zeros(1, 4, 5), "(E, 4, F)"),
        },
    ),
    "combine": (
        check_combine,
        {
            "expert_out": (torch.zeros(2, 4), "(P, D)"), "gates": (torch.zeros(2), "(2,)"),
            "slots": (torch.zeros(6, 3).long(), "(S, E)"),
        },
    ),
    "choose_pairs": (
        choose_pairs,
        {
            "logits": (torch.zeros(2, 3, 4), "(B, T, E)"), "mask": (torch.ones(2, 3) > 0, "(2, 3)"),
            "selection_bias": (torch.zeros(4), "(4,)"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("step", GIVEN)
def test_every_argument_is_told_by_its_name(step: str) -> None:
    """One is of another kind, has a dimension too many, or is elsewhere than the others."""
    check, given_ = GIVEN[step]
    values = {name: value for name, (value, _) in given_.items()}
    check(**values)
    for name, (value, shape) in given_.items():
        with pytest.raises(TypeError, match=f"^{name}: expected a tensor of shape {re.escape(shape)}, got str$"):
            check(**{**values, name: "x"})
        came = tuple(value[..., None].shape)
        if (step, name) == ("select", "valid"):
            shape = "(6, 4)"  # which pairs are open
        with pytest.raises(ValueError, match=f"^{name}: expected shape {re.escape(f'{shape}, got {came}')}$"):
            check(**{**values, name: value[..., None]})
        moved = {each: "meta" if each == name else "cpu" for each in values}
        told = ", ".join(f"{each} on {device}" for each, device in moved.items())
        with pytest.raises(ValueError, match=f"^{next(iter(values))}: expected all tensors on one device, got {told}$"):
            check(**{**values, name: value.to("meta")})


def test_rows_that_divide_nothing_are_told_by_their_name() -> None:
    for name, columns in (("router_offset", 3), ("scale", 4), ("shift", 4)):
        for rows, tokens in ((4, 6), (0, 6), (5, 6)):
            given_ = {"router_offset": torch.zeros(1, 3), "scale": torch.zeros(1, 4), "shift": torch.zeros(1, 4)}
            given_[name] = torch.zeros(rows, columns)
            words = f"{name}: expected a number of rows that divides the number of tokens {tokens}, got {rows}"
            with pytest.raises(ValueError, match=f"^{words}$"):
                check_route(torch.zeros(tokens, 4), WEIGHT, **given_)
    check_route(HIDDEN[:0], WEIGHT, torch.zeros(0, 3), None, None)


def test_references_compute_where_their_arguments_are() -> None:
    """Wherever new tensors go by default: an array that forgot the device would be elsewhere than the others."""
    a = arguments(12, 4, 3, 5, rows=2)
    route = tuple(a[name] for name in ("hidden", "router_weight", "router_offset", "scale", "shift"))
    valid, mask, received = torch.arange(12) % 5 > 0, torch.ones(2, 6) > 0, torch.tensor([[1, 2], [0, 1]])

    def everything() -> list[object]:
        tokens, logits = route_reference(*route)
        pairs = select_reference(logits, a["selection_bias"], valid)
        expert_out = experts_reference(tokens, pairs.token_idx, pairs.expert_offsets, a["w_gate_up"], a["w_down"])
        made: list[object] = [*pairs, expert_out, combine_reference(expert_out, pairs.gates, pairs.slots)]
        scores = logits.view(2, 6, 3)
        for pool, unit in (("batch", "frame"), ("sample", "frame"), ("batch", "sequence")):
            for routing in ("dynamic", "token_choice", "expert_choice"):
                options = {"routing": routing, "top_k": 2, "pool": pool, "unit": unit}
                chosen = choose_pairs(scores, mask, a["selection_bias"], **options)
                made += [chosen, load_balance_loss(scores, chosen, None, pool=pool), router_z_loss(scores, mask)]
        for most in (9, None):
            made += plan_exchange(pairs.slots >= 0, received, 2, 2, most)
        return made

    plain = everything()
    with torch.device("meta"):
        elsewhere = everything()
    for one, other in zip(plain, elsewhere, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_references_of_half_types_round_once(dtype: torch.dtype) -> None:
    """Sums, normalisation and weighting are in float32: what is stored is next to the exact value of these inputs."""
    a = {name: value.float() for name, value in arguments(40, 33, 8, 5, rows=2, bias=-0.2).items()}
    hidden, condition = a["hidden"].to(dtype), [a[name] for name in ("router_offset", "scale", "shift")]
    tokens, logits = route_reference(hidden, a["router_weight"], *condition)
    exact = route_reference(*(each.double() for each in (hidden, a["router_weight"], *condition)))
    torch.testing.assert_close(logits.double(), exact[1], rtol=1e-5, atol=1e-5)
    pairs = select_reference(logits, a["selection_bias"])
    assert pairs.counts.sum() > 100, "several terms a token"
    expert_out = torch.randn(len(pairs.token_idx), 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = combine_reference(expert_out, pairs.gates.double(), pairs.slots)
    wanted = combine_reference(expert_out.double(), pairs.gates.double(), pairs.slots)
    plain = combine_reference(expert_out, None, pairs.slots)
    sums = combine_reference(expert_out.double(), None, pairs.slots)
    for found, value in ((tokens, exact[0]), (out, wanted), (plain, sums)):
        assert found.dtype == dtype
        half_a_step = torch.finfo(dtype).eps / 2
        assert ((found.double() - value).abs() <= half_a_step * value.abs() + 2e-6).all()


def test_the_first_logit_that_is_no_number_is_told() -> None:
    logits = torch.zeros(4, 3)
    logits[1, 2], logits[2, 0], logits[3, 1] = float("nan"), float("inf"), float("-inf")
    tokens, open_pairs = torch.arange(4) != 1, torch.ones(4, 3) > 0
    open_pairs[1:3] = False
    cases = [(None, 3, "nan", 1, 2), (tokens, 2, "inf", 2, 0), (open_pairs, 1, "-inf", 3, 1)]
    for valid, count, value, token, expert in cases:
        place = f"got {count} others, the first is {value} of token {token} and expert {expert}"
        where = "look for such values in hidden, router_weight and router_offset"
        with pytest.raises(ValueError, match=f"^logits: expected finite numbers, {place}: {where}$"):
            check_logits(logits, valid)
    check_logits(logits, torch.arange(4) == 0)
    check_logits(logits[:1], None)


def test_a_bias_is_taken_in_the_dtype_of_the_logits() -> None:
    """In float64 these would take what float32 calls a tie."""
    bias = torch.full((2,), -0.5 + 1e-10, dtype=torch.float64)
    assert not select_reference(torch.zeros(3, 2), bias).counts.any()
    assert not choose_pairs(torch.zeros(1, 3, 2), None, bias).any()
    assert select_reference(torch.zeros(3, 2, dtype=torch.float64), bias).counts.tolist() == [3, 3]


def test_recomputed_experts_are_the_same_and_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(*given_: object, **options: object) -> object:
        calls.append(given_[0])
        return checkpoint(*given_, **options)

    monkeypatch.setattr("intermoe.ops.experts.checkpoint", counted)
    a = arguments(12, 4, 3, 5)
    leaves = [a[name].requires_grad_() for name in ("hidden", "w_gate_up", "w_down")]
    offsets, idx = torch.tensor([0, 4, 4, 9]), torch.arange(9) % 5
    grad = torch.randn(9, 4, dtype=torch.float64)
    plain = experts_reference(leaves[0], idx, offsets, *leaves[1:])
    wanted = torch.autograd.grad(plain, leaves, grad)
    assert not calls
    again = experts_reference(leaves[0], idx, offsets, *leaves[1:], recompute=True)
    assert len(calls) == 3
    assert torch.equal(again, plain)
    assert all(map(torch.equal, torch.autograd.grad(again, leaves, grad), wanted))
    with torch.no_grad():
        assert torch.equal(experts_reference(leaves[0], idx, offsets, *leaves[1:], recompute=True), plain)
    assert len(calls) == 3


def test_what_lies_below_transforms() -> None:
    seen: list[tuple[bool, Tensor, bool]] = []

    def look(x: Tensor) -> Tensor:
        seen.append((is_transformed(), *unwrapped(x)))
        return x.square().sum()

    x = torch.randn(2, 3)
    look(x)
    torch.func.grad(look)(x)
    torch.vmap(look)(x)
    torch.vmap(torch.func.grad(look))(x)
    torch.func.grad(lambda rows: torch.vmap(look)(rows).sum())(x)
    assert [(transformed, mapped) for transformed, _, mapped in seen] == [
        (False, False), (True, False), (True, True), (True, True), (True, True),
    ]  # fmt: skip
    assert seen[0][1] is x
    for _, below, _ in seen:
        assert not torch._C._functorch.is_functorch_wrapped_tensor(below)
        assert torch.equal(below, x)


def test_a_pool_may_have_one_pair_and_its_bias_is_where_the_others_are() -> None:
    route, select, experts = steps(arguments(1, 4, 1, 5, bias=-0.001))
    for most in (1, None):
        assert moe(route, select._replace(max_pairs=most), experts, backend="reference").counts.tolist() == [1]
    with pytest.raises(ValueError, match=r"^hidden: expected all tensors on one device, .*selection_bias on meta"):
        moe(route, select._replace(selection_bias=torch.zeros(1, device="meta")), experts)


def test_hooks_of_saved_tensors_are_no_checkpoint() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_watched())
        return x.square()

    x = torch.ones(2, requires_grad=True)
    look(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        look(x)
        checkpoint(look, x, use_reentrant=False)
    assert seen == [False, False, True]
