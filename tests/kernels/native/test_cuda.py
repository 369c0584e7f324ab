"""The CUDA kernels against the reference: the whole operation with every gradient, and what only the steps show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intermoe.kernels import native
from intermoe.kernels.native import library
from intermoe.kernels.native.registry import CODES, call
from intermoe.ops.combine import combine_reference
from intermoe.ops.moe import Experts, Route, Select, moe
from intermoe.ops.select import select_reference

# tokens, dim, experts, expert_dim, rows: and why.
SHAPES = [
    (64, 32, 4, 48, 4),  # 16-byte accesses throughout
    (63, 7, 5, 9, 9),  # odd everything
    (1, 1, 1, 1, 1),  # the smallest
    (0, 8, 4, 8, 1),  # no tokens
    (600, 16, 3, 24, 2),  # more than a block of the selection; several runs of tokens per row
    (20, 16, 64, 8, 20),  # more experts than are counted at a time; a row of the condition per token
    (5, 1028, 2, 1100, 1),  # more columns than a block has threads
]
NAMES = ("hidden", "router_weight", "router_offset", "scale", "shift", "selection_bias", "w_gate_up", "w_down")
STORED = ("hidden", "w_gate_up", "w_down")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of ``moe`` by name, and a mask of pairs."""
    tokens, dim, experts, expert_dim, rows = shape
    g = torch.Generator().manual_seed(0)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=g) * std

    values = (
        normal(tokens, dim) + 0.5,
        normal(experts, dim, std=dim**-0.5),
        normal(rows, experts),
        normal(rows, dim, std=0.5),
        normal(rows, dim, std=0.5),
        torch.full((experts,), -0.5),
        normal(experts, 2 * expert_dim, dim, std=dim**-0.5),
        normal(experts, dim, expert_dim, std=expert_dim**-0.5),
    )
    case = {name: v.to(dtype if name in STORED else torch.float32) for name, v in zip(NAMES, values, strict=True)}
    return case, torch.rand(tokens, experts, generator=g) > 0.1


def off_boundary(tensor: Tensor) -> Tensor:
    """The same dense values, starting one element after a 16-byte boundary."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def run(
    case: dict[str, Tensor], mask: Tensor, device: torch.device, backend: str, misaligned: bool = False, **options
) -> list[Tensor]:
    """Output, counts and the gradient of everything that has one, on the CPU.

    Options: ``chosen`` takes the mask for the choice, else its first column says which tokens are valid.
    """
    move = off_boundary if misaligned else torch.clone
    leaves = {name: move(t.detach().to(device)).requires_grad_(name != "selection_bias") for name, t in case.items()}
    normalise = options.get("normalise", True)
    if not normalise:
        leaves["scale"] = leaves["shift"] = None
    *route, bias, w_gate_up, w_down = leaves.values()
    mask = mask.to(device)
    select = Select(None, mask) if options.get("chosen") else Select(bias, mask[:, 0].contiguous())
    experts = Experts(w_gate_up, w_down, options.get("recompute", False))
    out, counts, *_ = moe(Route(*route, normalise), select, experts, backend=backend)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    wanted = [t for t in leaves.values() if t is not None and t.requires_grad]
    return [t.cpu() for t in (out, counts, *torch.autograd.grad(out, wanted, grad))]


def compare(case: dict[str, Tensor], valid: Tensor, place: torch.device, relative_error, tolerance, **options) -> None:
    dtype = case["hidden"].dtype
    found = run(case, valid, place, "native", **options)
    bound = tolerance(dtype)
    for actual, expected in zip(found, run(case, valid, torch.device("cpu"), "reference", **options), strict=True):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) <= bound


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_moe(place, shape, dtype, relative_error, tolerance) -> None:
    compare(*draw(shape, dtype), place, relative_error, tolerance)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_misaligned(place, dtype, relative_error, tolerance) -> None:
    compare(*draw((37, 16, 3, 24, 1), dtype), place, relative_error, tolerance, misaligned=True)


@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"normalise": False}, {"chosen": True}], ids=["recompute", "no norm", "choice"]
)
def test_options(place, options, relative_error, tolerance) -> None:
    compare(*draw((40, 16, 3, 24, 4), torch.float32), place, relative_error, tolerance, **options)


def test_chunks_change_nothing(place, relative_error, monkeypatch: pytest.MonkeyPatch) -> None:
    case, valid = draw((200, 16, 3, 24, 1), torch.float32)
    whole = run(case, valid, place, "native")
    monkeypatch.setattr("intermoe.kernels.native.moe.CUDA_CHUNK_BYTES", 1000)
    monkeypatch.setattr("intermoe.kernels.native.experts.CUDA_SEGMENT_ROWS", 16)
    for actual, expected in zip(run(case, valid, place, "native"), whole, strict=True):
        assert relative_error(actual, expected) <= 1e-5


def test_same_bits_twice(place) -> None:
    case, valid = draw((100, 24, 5, 16, 2), torch.float32)
    first, second = (run(case, valid, place, "native") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1.0), (1e4, 10.0), (1e6, 1.0)])
def test_statistics_of_a_mean_that_a_sum_loses(place, mean: float, spread: float) -> None:
    """What a sum of large numbers leaves of the mean is taken off, as on a CPU."""
    hidden = spread * torch.randn(5, 3001, generator=torch.Generator().manual_seed(0)) + mean
    exact, eps = hidden.double(), 1e-5
    tokens, _, found, rstd = native.route_forward(
        hidden.to(place), torch.zeros(2, 3001).to(place), None, None, None, eps, True
    )
    assert (found.cpu().double().view(-1) - exact.mean(1)).abs().max() <= mean * 2.0**-23
    wanted = (exact.var(1, unbiased=False) + eps).rsqrt()
    torch.testing.assert_close(rstd.cpu().double().view(-1), wanted, rtol=2e-5, atol=0)
    normalised = (exact - exact.mean(1, keepdim=True)) * wanted[:, None]
    torch.testing.assert_close(tokens.cpu().double(), normalised, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0, float("nan")], ids=["none", "some", "all", "nan"])
@pytest.mark.parametrize("experts", [1, 3, 33, 130])  # of the last more counts than two rounds of the scan take
def test_select(place, level: float, experts: int) -> None:
    logits = torch.randn(1100, experts, generator=torch.Generator().manual_seed(0)) + level
    bias = torch.full((experts,), -0.5)
    expected = select_reference(logits, bias)
    found = native.select(logits.to(place), bias.to(place), None)
    for name, actual in zip(expected._fields, found, strict=True):
        torch.testing.assert_close(actual.cpu(), getattr(expected, name), rtol=1e-6 if name == "gates" else 0, atol=0)


@pytest.mark.parametrize("level", [1e4, -1e4])
def test_gates_and_their_gradient_of_huge_logits(place, level: float) -> None:
    """exp of them is infinite, or 0 throughout: the largest is taken off first."""
    logits = (torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + level).requires_grad_()
    chosen = torch.arange(120).view(40, 3) % 5 > 0
    expected = select_reference(logits, None, chosen)
    grad_gates = torch.randn(len(expected.gates), generator=torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad(expected.gates, logits, grad_gates)
    plain = logits.detach().to(place)
    _, gates, _, slots, _ = native.select(plain, None, chosen.to(place))
    torch.testing.assert_close(gates.cpu(), expected.gates.detach(), rtol=1e-6, atol=0)
    found = native.select_backward(grad_gates.to(place), plain, slots)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-6)


def test_indices_outside_are_not_accessed(place) -> None:
    """Where the host cannot refuse them without waiting, the rows that they concern are NaN and no other."""
    slots = torch.tensor([[0, 1], [3, -1], [2, -1]], device=place)  # 3 is the first that there is not
    rows = torch.randn(3, 8)
    out = native.combine(rows.to(place), None, slots).cpu()
    assert out[1].isnan().all()
    assert torch.equal(out[::2], combine_reference(rows, None, torch.tensor([[0, 1], [2, -1]])))
    grad = native.select_backward(torch.ones(3, device=place), torch.zeros(3, 2, device=place), slots).cpu()
    assert grad[1].isnan().any()
    assert grad[::2].isfinite().all()
    weights = (torch.randn(1, 8, 8), torch.randn(1, 8, 4))
    arguments = (rows, torch.tensor([0, 3, -1]), torch.tensor([0, 3]), *weights)
    expert_out, _ = native.experts_forward(*(t.to(place) for t in arguments))
    assert expert_out[1:].isnan().all()
    assert expert_out[0].isfinite().all()


S, D, E, F, R, P = 6, 16, 3, 8, 2, 7
"""Sizes of which every row is whole pieces of 16 bytes."""
PAIRS = torch.tensor([[0, -1, 4], [1, 2, -1], [-1, -1, 5], [-1, 3, -1], [-1, -1, -1], [-1, -1, 6]])
# Of each step its arrays in order, those that are stored in a half type as "T"; what it writes; and its sizes.
STEPS: dict[str, tuple[dict[str, tuple[object, tuple[int, ...]]], tuple[str, ...], tuple[float, ...]]] = {
    "route_forward": (
        {"hidden": ("T", (S, D)), "router_weight": (torch.float32, (E, D)), "router_offset": (torch.float32, (R, E)),
         "scale": (torch.float32, (R, D)), "shift": (torch.float32, (R, D)), "tokens": ("T", (S, D)),
         "logits": (torch.float32, (S, E)), "mean": (torch.float32, (S,)), "rstd": (torch.float32, (S,))},
        ("tokens", "logits", "mean", "rstd"), (S, D, E, R, 1e-6),
    ),
    "route_backward": (
        {"grad_tokens": ("T", (S, D)), "grad_logits": (torch.float32, (S, E)), "hidden": ("T", (S, D)),
         "mean": (torch.float32, (S,)), "rstd": (torch.float32, (S,)), "router_weight": (torch.float32, (E, D)),
         "scale": (torch.float32, (R, D)), "grad_hidden": ("T", (S, D)), "grad_router_weight": (torch.float32, (E, D)),
         "grad_router_offset": (torch.float32, (R, E)), "grad_scale": (torch.float32, (R, D)),
         "grad_shift": (torch.float32, (R, D)), "scratch": (torch.float32, (99 * D,))},
        ("grad_hidden", "grad_router_weight", "grad_router_offset", "grad_scale", "grad_shift"), (S, D, E, R),
    ),
    "swiglu_forward": ({"h": ("T", (P, 2 * F)), "activation": ("T", (P, F))}, ("activation",), (P, F)),
    "swiglu_backward": (
        {"h": ("T", (P, 2 * F)), "gates": (torch.float32, (P,)), "inner": ("T", (P, F)), "grad_h": ("T", (P, 2 * F)),
         "grad_gates": (torch.float32, (P,))},
        ("inner", "grad_h", "grad_gates"), (P, F),
    ),
    "combine": (
        {"expert_out": ("T", (P, D)), "gates": (torch.float32, (P,)), "slots": (torch.int64, (S, E)),
         "shift": (torch.int64, (E,)), "out": ("T", (S, D))},
        ("out",), (P, S, D, E),
    ),
}  # fmt: skip


def results(step: str, dtype: torch.dtype, place: torch.device, moved: str | None) -> list[Tensor]:
    """What a step writes; ``moved``: the name of one of its arrays that starts off a boundary of 16 bytes."""
    given, written, sizes = STEPS[step]
    g, arrays = torch.Generator().manual_seed(0), {}
    for name, (stored, shape) in given.items():
        made = torch.randn(shape, generator=g).to(dtype if stored == "T" else stored)
        arrays[name] = made
    if step == "combine":
        arrays |= {"slots": PAIRS.clone(), "shift": torch.zeros(E, dtype=torch.int64)}
    arrays = {name: each.to(place) for name, each in arrays.items()}
    if moved is not None:
        arrays[moved] = off_boundary(arrays[moved])
        assert arrays[moved].data_ptr() % 16 != 0
    assert all(each.data_ptr() % 16 == 0 for name, each in arrays.items() if name != moved)
    call(step, *arrays.values(), *sizes, CODES[dtype])
    return [arrays[name].cpu() for name in written]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("step", STEPS)
def test_any_one_array_may_lie_off_a_boundary(place, step: str, dtype: torch.dtype) -> None:
    """All of those that are read or written 16 bytes at a time must lie on one; else none is."""
    expected = results(step, dtype, place, None)
    bound = 8 * torch.finfo(dtype).eps
    for name in STEPS[step][0]:
        if name in ("slots", "shift") and step == "combine":
            continue  # numbers of 8 bytes, one at a time
        for found, wanted in zip(results(step, dtype, place, name), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("moved", ["source", "out"])
def test_rows_are_gathered_to_and_from_any_place(place, moved: str) -> None:
    source, rows, out = torch.randn(5, 8), torch.tensor([3, 0, 3]), torch.zeros(3, 8)
    source, rows, out = (each.to(place) for each in (source, rows, out))
    source, out = (off_boundary(each) if name == moved else each for name, each in (("source", source), ("out", out)))
    call("gather", source, rows, 3, 5, 32, out)
    assert torch.equal(out, source[rows])


@pytest.mark.parametrize(
    ("step", "numbers", "message"),
    [
        ("select_count", (-1, 3, 1), "expected S >= 0 and E >= 1, got S=-1, E=3"),
        ("select_count", (4, 0, 1), "expected S >= 0 and E >= 1, got S=4, E=0"),
        ("select_count", (4, 3, 2), "expected V = 1 or E = 3, got V=2"),
        ("select_fill", (4, 0), "expected S >= 0 and E >= 1, got S=4, E=0"),
        ("select_backward", (0, -1, 3), "expected S >= 0 and E >= 1, got S=-1, E=3"),
        ("route_forward", (6, 2, 3, 4, 1e-6, 0), "sizes do not fit: S=6 D=2 E=3 R=4 dtype=0"),
        ("route_forward", (6, 2, 3, 2, 1e-6, 3), "sizes do not fit: S=6 D=2 E=3 R=2 dtype=3"),
        ("route_backward", (6, 0, 3, 2, 0), "sizes do not fit: S=6 D=0 E=3 R=2 dtype=0"),
        ("gather", (0, 0, 7), "expected rows of whole elements, got 7 bytes"),
        ("swiglu_forward", (0, 4, 3), "unknown dtype code 3"),
        ("swiglu_backward", (0, 4, -1), "unknown dtype code -1"),
        ("combine", (0, 0, 4, 3, 3), "unknown dtype code 3"),
        ("combine", (0, 2**31, 4, 3, 0), "a grid of 2147483648 x 1 x 1 blocks is too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(place, step: str, numbers: tuple[float, ...], message: str) -> None:
    """With one piece of zeros as every array; no kernel starts that would go beyond it."""
    room, given = torch.zeros(64, device=place), iter(numbers)
    kinds = library.SIGNATURES[f"intermoe_{step}_cuda"].partition(":")[2][:-2]
    arguments = [room if kind == "p" else next(given) for kind in kinds]
    with pytest.raises(RuntimeError, match=f"^native {step}: {message}$"):
        call(step, *arguments)
