"""Numbers at the edges of their types: every backend in every variant, against values that are known exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from intermoe.kernels.native.registry import CODES, call
from intermoe.ops.combine import combine_reference
from intermoe.ops.moe import Experts, Route, Select, moe
from intermoe.ops.route import EPS, route_reference
from intermoe.ops.routing import choose_pairs
from intermoe.ops.select import select_reference

NAN, INF = math.nan, math.inf

# logit, bias, selected: sigmoid(logit) + bias is exactly 0 in float32 in the first rows, which selects nothing.
TIES = [
    (0.0, -0.5, False), (-0.0, -0.5, False), (1e4, -1.0, False), (INF, -1.0, False), (-1e4, 0.0, False),
    (-INF, 0.0, False), (1e-6, -0.5, True), (-1e-6, -0.5, False), (1e4, -0.999, True), (-1e4, -1e-30, False),
    (80.0, -0.9999999, True), (-80.0, 1e-30, True), (INF, -0.5, True), (-INF, -0.5, False), (NAN, 0.5, False),
]  # fmt: skip


def selects(select, logits: torch.Tensor, biases: torch.Tensor) -> list[bool]:
    return (select(logits, biases)[3] >= 0).flatten().tolist()


def test_ties_of_the_reference() -> None:
    """One pair at a time, so that a NaN is no other pair's business."""
    wanted = [selected for *_, selected in TIES]
    for dtype in (torch.float32, torch.float64):
        found = [
            selects(select_reference, torch.tensor([[x]], dtype=dtype), torch.tensor([b], dtype=dtype))[0]
            for x, b, _ in TIES
            if b != -0.9999999 or dtype == torch.float32
        ]
        assert found == wanted if dtype == torch.float32 else found == [s for _, b, s in TIES if b != -0.9999999]
    chosen = [bool(choose_pairs(torch.tensor([[[x]]]), None, torch.tensor([b]))) for x, b, _ in TIES]
    assert chosen == wanted


def test_ties(steps) -> None:
    for x, b, selected in TIES:
        assert selects(steps.select, torch.full((3, 1), x), torch.tensor([b])) == [selected] * 3, (x, b)


GATES = [
    ([1e4, -1e4, 0.0], [1.0, 0.0, 0.0]),  # nothing but the largest counts; no power of e overflows
    ([-1e4, -1e4, -1e4], [1 / 3] * 3),  # and none vanishes
    ([1e4, 1e4, 1e4 - 2], [1 / (2 + math.exp(-2))] * 2 + [math.exp(-2) / (2 + math.exp(-2))]),
    ([88.0, -88.0, 87.0], [1 / (1 + math.exp(-1)), 0.0, math.exp(-1) / (1 + math.exp(-1))]),
]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("logits", "wanted"), GATES)
def test_gates_of_large_logits(steps, logits: list[float], wanted: list[float], place: int) -> None:
    """The softmax subtracts the largest logit, whichever expert's it is, in gates and in their gradient."""
    logits, wanted = ([*numbers[place:], *numbers[:place]] for numbers in (logits, wanted))
    expected = torch.tensor([wanted] * 2).T.flatten()
    everything = torch.full((3,), 1.0)
    rows = torch.tensor([logits] * 2)
    for gates in (select_reference(rows, everything).gates, steps.select(rows, everything)[1]):
        torch.testing.assert_close(gates, expected, rtol=1e-5, atol=1e-30)
    grad = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    share, mine = torch.tensor([wanted] * 2), grad.view(3, 2).T
    found = steps.select_backward(grad, rows, torch.arange(6).view(3, 2).T.contiguous())
    torch.testing.assert_close(found, share * (mine - (share * mine).sum(1, keepdim=True)), rtol=1e-5, atol=1e-6)


def test_the_first_pair_counts(steps) -> None:
    """Pair 0 alone: a gradient, and an output, for the token that has it; none for the others."""
    logits, slots = torch.tensor([[0.3, -0.2], [5.0, 1.0], [0.0, 0.0]]), torch.tensor([[-1, -1], [0, -1], [-1, 1]])
    share = torch.softmax(logits, -1)
    found = steps.select_backward(torch.tensor([2.0, 3.0]), logits, slots)
    product = 2 * float(share[1, 0] * share[1, 1])
    expected = torch.tensor([[0.0, 0.0], [product, -product], [-0.75, 0.75]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    out = steps.combine(torch.tensor([[2.0], [7.0]]), torch.tensor([0.5, 2.0]), slots)
    assert out.tolist() == [[0.0], [1.0], [14.0]]


def numbers() -> torch.Tensor:
    """Float32 numbers at which rounding to a half type is easy to get wrong, and random ones of every size."""
    wide = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() * 10.0 ** torch.linspace(-44, 38, 200)
    special = [NAN, INF, -INF, 0.0, 65519.996, 65520.0, 65504.0, 3.3895e38, 3.4e38, 1e-45, 2.0**-24, 2.0**-25, 6.1e-5]
    special += [share * 2.0**least for least in (-24, -133) for share in (0.49, 0.51, 0.75, -0.75, 1.49, 1.51)]
    special += [2.0**-14 - 2.0**-26, -(2.0**-133), 2.0**-134, 9.2e-41, 2.0**-126, 0.7 * 2.0**-126]
    for ulp in (2.0**-10, 2.0**-7):  # of float16 and bfloat16 at 1: halfway goes to even, just beside it does not
        for k in (0.5, 1.5, 2.5):
            special += [1 + k * ulp, 1 + k * ulp + 2.0**-20, 1 + k * ulp - 2.0**-20, -1 - k * ulp, 2 - k * ulp]
    # NaNs of all ones: adding half a step of bfloat16 would carry them to 0
    ones = torch.tensor([0x7FFFFFFF, -1, 0x7FFF8000, -0x8000], dtype=torch.int32).view(torch.float32)
    return torch.cat([torch.tensor(special), ones, wide.float()])


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal numbers (0 and -0 are, infinity and the largest number are not), and NaN in the same places."""
    wrong = found.isnan() | expected.isnan()
    return torch.equal(found.isnan(), expected.isnan()) and torch.equal(found[~wrong], expected[~wrong])


def test_what_is_stored_is_the_nearest_even_number(steps, dtype) -> None:
    """The sum of one pair, of an output 1 under a gate, is that gate as stored, in whole vectors and tails."""
    gates = numbers()
    slots = torch.arange(len(gates))[:, None]
    # whole vectors of 16, 8 and 4, and what no vector fills
    found = steps.combine(torch.ones(len(gates), 31).to(dtype), gates, slots)
    assert same(found, gates.to(dtype)[:, None].expand(-1, 31))


def test_what_is_loaded_is_the_number(steps, dtype) -> None:
    """Logits of a router that picks columns are the stored numbers, subnormal ones too: all of a half type."""
    if dtype == torch.float32:
        stored = numbers()
    else:
        step = 1 if steps.__name__.endswith("native") else 61  # the interpreter is slow
        stored = torch.arange(0, 65536, step).to(torch.uint16).view(dtype)
    stored = stored[stored.isfinite()]
    stored = torch.cat([stored, stored.new_zeros(-len(stored) % 23)]).view(-1, 23)
    found = steps.route_forward(stored, torch.eye(23), None, None, None, EPS, False)[1]
    assert same(found, stored.float())
    special = torch.tensor([[NAN], [INF], [-INF]]).to(dtype)
    assert same(steps.route_forward(special, torch.ones(1, 1), None, None, None, EPS, False)[1], special.float())


@pytest.mark.parametrize("with_gates", [True, False])
def test_sums_are_of_float32(steps, dtype, with_gates: bool) -> None:
    """In a half type a large number would swallow 63 ones, which in float32 move it by 31 of its steps, and a tie."""
    large = 2.0 / torch.finfo(dtype).eps if dtype != torch.float32 else 2.0**23
    expert_out = torch.ones(64, 21, dtype=dtype)
    expert_out[0] = large
    slots = torch.arange(64)[None]
    gates = torch.ones(64) if with_gates else None
    expected = torch.full((1, 21), large + 63).to(dtype)
    assert (expected > large).all()
    assert torch.equal(steps.combine(expert_out, gates, slots), expected)
    assert torch.equal(combine_reference(expert_out, gates, slots), expected)


# gate -> silu(gate), float64: e^-gate overflows beyond 88 and silu vanishes below -88.
ARGUMENTS = [80.0, -80.0, 87.0, -87.0, 88.3, 89.0, 1e4, 0.0, 1e-40, 0.5, -0.5, 1.0, -1.0, 3.7, -3.7, 12.0, -12.0, -20.0]


def test_silu_at_its_ends(backend, steps, dtype) -> None:
    """One token, 1, so that weights are pre-activations, and gradients of weights the activation and its slopes."""
    gates = torch.tensor([*ARGUMENTS, *torch.linspace(-30, 30, 23).tolist()]).to(dtype)
    width = len(gates)
    gate, other = gates.double(), 3.0
    sigmoid = 1 / (1 + torch.exp(-gate))
    weights = torch.cat([gates, torch.full_like(gates, other)])[None, :, None]
    index = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1])
    token = torch.ones(1, 1).to(dtype)
    picked = torch.ones(1, 1, width).to(dtype)
    grads = steps.experts_backward(token, token, *index, torch.ones(1), None, weights, picked)
    eps = torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal * eps if dtype != torch.float32 else 1e-37
    close = {"rtol": 4 * eps, "atol": smallest}
    torch.testing.assert_close(grads[3][0, 0].double(), gate * sigmoid * other, **close)
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    torch.testing.assert_close(grads[2][0, :width, 0].double(), other * slope, rtol=8 * eps, atol=eps**2)
    torch.testing.assert_close(grads[2][0, width:, 0].double(), gate * sigmoid, **close)
    if backend != "native":
        return
    h = torch.cat([gates, gates.new_full((3,), NAN), gates.new_full((1,), INF)])
    h = torch.cat([h, torch.ones_like(h)])
    activation = torch.empty(len(h) // 2, dtype=dtype)
    call("swiglu_forward", h, activation, 1, len(activation), CODES[dtype])
    assert activation[width:].tolist() == pytest.approx([NAN, NAN, NAN, INF], nan_ok=True)
    torch.testing.assert_close(activation[:width].double(), gate * sigmoid, **close)


def test_exp_is_exact_to_two_units(backend, steps) -> None:
    """silu(-x) = -x / (1 + e^x), and 1 is nothing beside e^x: 2 units of exp, and half a one of / and * each."""
    if backend != "native":  # Triton's exp is its compiler's
        return
    gates = -torch.linspace(18, 86, 20_001)
    activation = torch.empty_like(gates)
    call("swiglu_forward", torch.cat([gates, torch.ones_like(gates)]), activation, 1, len(gates), CODES[torch.float32])
    exact = gates.double() / (1 + torch.exp(-gates.double()))
    assert (activation / exact - 1).abs().max() < 3 * torch.finfo(torch.float32).eps


def test_experts_do_not_mix(steps, dtype) -> None:
    """A token that is no number spoils its own pairs only, and an expert's weights its own only."""
    tokens, gate_up, down = torch.ones(4, 5).to(dtype), torch.ones(3, 14, 5).to(dtype), torch.ones(3, 5, 7).to(dtype)
    tokens[1, 3] = NAN
    gate_up[2, 4, 1] = INF
    idx, offsets = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 2, 4, 5])
    out, _ = steps.experts_forward(tokens, idx, offsets, gate_up, down)
    assert out.isfinite().all(1).tolist() == [True, False, True, True, False]


def test_normalising_what_does_not_vary(steps, dtype) -> None:
    """eps is inside the root: rows without variance give shift, not a NaN; small variance counts against eps."""
    hidden = torch.full((2, 37), 3.0)
    hidden[1, ::2] += 2.0**-9
    hidden = hidden.to(dtype)
    shift = torch.linspace(-1, 1, 37)[None]
    tokens, _, mean, rstd = steps.route_forward(hidden, torch.zeros(1, 37), None, torch.zeros(1, 37), shift, EPS, True)
    exact = hidden.double()
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0)
    wanted = (exact.var(1, unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), wanted, rtol=1e-3, atol=0)
    assert same(tokens[0], shift[0].to(dtype))


def test_routing_is_float32_under_autocast() -> None:
    """In bfloat16 some of these tokens would cross the threshold. The experts do run in it."""
    g = torch.Generator().manual_seed(0)
    hidden, router = torch.randn(400, 48, generator=g), torch.randn(5, 48, generator=g) / 7
    weights = torch.randn(5, 8, 48, generator=g) / 7, torch.randn(5, 48, 4, generator=g) / 2
    bias = torch.full((5,), -0.5)
    logits = route_reference(hidden, router, None, None, None)[1]
    wanted = (torch.sigmoid(logits) > 0.5).sum(0)
    rough = hidden.bfloat16() @ router.bfloat16().T
    assert not torch.equal((torch.sigmoid(rough.float()) > 0.5).sum(0), wanted)
    steps = Route(hidden, router), Select(bias), Experts(*weights)
    for name in ("reference", None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, counts, *_ = moe(*steps, backend=name)
        assert torch.equal(counts, wanted)
        exact = moe(*steps, backend="reference").out
        assert 1e-4 < ((out - exact).norm() / exact.norm()).item() < 0.02


def test_inputs_of_half_types_route_in_float32() -> None:
    """The reference widens before it multiplies: logits of half types are exact sums, not sums of rounded ones."""
    for dtype in (torch.float16, torch.bfloat16):
        hidden = torch.ones(1, 2049).to(dtype)
        logits = route_reference(hidden, hidden, hidden[:, :1], None, None, normalise=False)[1]
        assert logits.dtype == torch.float32
        assert logits.item() == 2050


def test_numbers_hold_every_boundary() -> None:
    """The list has ties of both half types and numbers that only rounding makes infinite."""
    finite = numbers()[numbers().isfinite()]
    for dtype in (torch.float16, torch.bfloat16):
        steps_ = torch.arange(16).to(torch.int16).view(dtype).double()
        assert any((finite.double() == (a + b) / 2).any() for a, b in pairwise(steps_))
    assert finite.half().isinf().any()
