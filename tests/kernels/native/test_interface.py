"""The C interface itself: sizes and types that it refuses, memory that it cannot have, and what it leaves alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native import library, products
from intermoe.kernels.native.registry import CODES
from intermoe.kernels.native.route import route_backward
from intermoe.kernels.native.select import select_backward

VARIANTS = ("baseline", "avx2", "avx512")
HUGE = 1 << 50
"""So many numbers lie beyond what any process can address."""


@pytest.fixture
def native() -> ctypes.CDLL:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return library.load()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, native: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """The library, computing in one of the variants that this machine runs."""
    own = VARIANTS.index(library.instruction_set())
    if native.intermoe_use_instruction_set(VARIANTS.index(request.param)) != 0:
        pytest.skip(f"{request.param}: {native.intermoe_last_error().decode()}")
    yield native
    native.intermoe_use_instruction_set(own)


# Of each function its numbers in order, none of which asks for work; and what is told of other ones.
NUMBERS: dict[str, dict[str, float]] = {
    "select_count": {"S": 0, "E": 3, "V": 1},
    "select_fill": {"S": 0, "E": 3},
    "select_backward": {"P": 0, "S": 0, "E": 3},
    "route_forward": {"S": 0, "D": 2, "E": 3, "R": 0, "eps": 1.0, "dtype": 1},
    "route_backward": {"S": 0, "D": 2, "E": 3, "R": 0, "dtype": 1},
    "experts_forward": {"P": 0, "S": 0, "D": 2, "E": 3, "F": 4, "packed": 0, "dtype": 1},
    "gather": {"count": 0, "num_rows": 0, "row_bytes": 8},
    "swiglu_forward": {"P": 0, "F": 4, "dtype": 1},
    "swiglu_backward": {"P": 0, "F": 4, "dtype": 1},
    "combine": {"P": 0, "S": 0, "D": 2, "E": 3, "dtype": 1},
    "product": {
        "a_row": 2, "a_column": 1, "b_row": 1, "b_column": 2, "packed": 0, "out_row": 3, "M": 0, "N": 3, "K": 2,
        "add": 0, "wide": 0, "dtype": 1,
    },
    "pack": {"b_row": 1, "b_column": 2, "N": 2, "K": 2, "paired": 1, "dtype": 1},
    "moe_forward": {
        "S": 0, "D": 2, "E": 3, "F": 4, "R": 0, "V": 1, "normalise": 0, "eps": 1.0, "dtype": 1,
    },
}  # fmt: skip
SELECT, FIT = "expected S >= 0 and E >= 1, got S={S}, E={E}", "sizes do not fit: "
TOLD = {
    "select_count": SELECT, "select_fill": SELECT, "select_backward": SELECT,
    "route_forward": f"{FIT}S={{S}} D={{D}} E={{E}} R={{R}} dtype={{dtype}}",
    "route_backward": f"{FIT}S={{S}} D={{D}} E={{E}} R={{R}} dtype={{dtype}}",
    "experts_forward": f"{FIT}P={{P}} S={{S}} D={{D}} E={{E}} F={{F}} dtype={{dtype}}",
    "gather": "expected sizes >= 0, got {count} rows",
    "swiglu_forward": "bad dtype {dtype} or size {P} x {F}", "swiglu_backward": "bad dtype {dtype} or size {P} x {F}",
    "combine": "unknown dtype code {dtype}",
    "product": f"{FIT}M={{M}} N={{N}} K={{K}} dtype={{dtype}}", "pack": f"{FIT}N={{N}} K={{K}} dtype={{dtype}}",
    "moe_forward": f"{FIT}S={{S}} D={{D}} E={{E}} F={{F}} dtype={{dtype}}",
}  # fmt: skip
LEAST = {"D": 1, "E": 1} | dict.fromkeys(("S", "P", "F", "R", "M", "N", "K", "count", "row_bytes"), 0)
WRONG = [
    (name, {key: value})
    for name, numbers in NUMBERS.items()
    for key in numbers
    for value in ((-1, 3) if key == "dtype" else (LEAST[key] - 1,) if key in LEAST else ())
    if (name, key) not in (("combine", "P"), ("combine", "S"), ("combine", "D"), ("combine", "E"))
    if (name, key) not in (("select_backward", "P"), ("moe_forward", "R"))
]
WRONG += [("experts_forward", {"F": 0}), ("moe_forward", {"F": 0}), ("pack", {"N": 3})]
WRONG += [(name, {"S": 6, "R": 4}) for name in ("route_forward", "route_backward")]


def answer(native: ctypes.CDLL, name: str, numbers: dict[str, float]) -> int:
    """With one piece of zeros as every array, and no mask."""
    room = torch.zeros(256, dtype=torch.int64)
    given = iter((*numbers.values(), 1))  # one thread
    kinds = library.SIGNATURES[f"intermoe_{name}_cpu"].partition(":")[2]
    arguments: list[Any] = [room.data_ptr() if kind == "p" else next(given) for kind in kinds]
    assert next(given, None) is None
    if name == "moe_forward":
        arguments[6] = None  # zeros would leave no token
    return int(getattr(native, f"intermoe_{name}_cpu")(*arguments))


@pytest.mark.parametrize("name", NUMBERS)
def test_sizes_that_ask_for_nothing_are_fine(native: ctypes.CDLL, name: str) -> None:
    for dtype in CODES.values() if "dtype" in NUMBERS[name] else (0,):
        changes = {"dtype": dtype} if "dtype" in NUMBERS[name] else {}
        assert answer(native, name, {**NUMBERS[name], **changes}) == 0


@pytest.mark.parametrize(("name", "change"), WRONG, ids=lambda each: each if isinstance(each, str) else str(each))
def test_sizes_and_types_that_there_are_not_are_told(native: ctypes.CDLL, name: str, change: dict[str, int]) -> None:
    numbers = {**NUMBERS[name], **change}
    assert answer(native, name, numbers) != 0
    assert native.intermoe_last_error().decode() == TOLD[name].format(**numbers)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("product", {"M": 1, "N": 1, "K": HUGE, "a_row": 1, "a_column": 2, "dtype": 0}),  # for panels
        ("product", {"M": 1, "N": 1, "K": HUGE}),  # for the left factor in float32
        ("pack", {"K": HUGE}),
        ("route_backward", {"D": 1, "E": HUGE}),  # for sums
        ("moe_forward", {"S": HUGE}),  # for what is of tokens
        ("moe_forward", {"S": 1, "D": 1, "E": 1, "F": HUGE}),  # and of pairs, once it is known that there is one
    ],
)
def test_memory_that_there_is_not_is_told(variant: ctypes.CDLL, name: str, change: dict[str, int]) -> None:
    assert answer(variant, name, {**NUMBERS[name], **change}) != 0
    assert variant.intermoe_last_error() == b"out of memory"


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("wide", [False, True])
def test_a_product_fills_its_columns_of_wider_rows(variant: ctypes.CDLL, dtype: torch.dtype, wide: bool) -> None:
    """And leaves those beside them as they were; with panels packed before, and added to what is there."""
    left, weight = torch.randn(5, 9).to(dtype), torch.randn(37, 9).to(dtype)
    expected = left.double() @ weight.double().T
    for packed in (False, True):
        for add in (False, True):
            out = torch.full((5, 45), 7.0, dtype=torch.float32 if wide else dtype)
            right = products._pack(weight, paired=False) if packed else weight
            strides = (0, 0) if packed else (1, 9)
            pointers = (left.data_ptr(), 9, 1, right.data_ptr(), *strides, int(packed), None, out.data_ptr())
            sizes = (45, 5, 37, 9, int(add), int(wide), CODES[dtype], 1)
            assert variant.intermoe_product_cpu(*pointers, *sizes) == 0
            bound = torch.finfo(out.dtype).eps * 20
            torch.testing.assert_close(out[:, :37].double(), expected + 7 * add, rtol=bound, atol=bound)
            assert (out[:, 37:] == 7).all()


@pytest.mark.parametrize("count", [3, 1100])
def test_experts_keep_within_their_workspace(variant: ctypes.CDLL, count: int) -> None:
    dim, width, past = 33, 17, 4096
    arrays: list[Any] = [torch.randn(4, dim), torch.arange(count) % 4, torch.tensor([[0, count]])]
    arrays += [torch.randn(1, 2 * width, dim), torch.randn(1, dim, width)]
    size = variant.intermoe_experts_scratch(count, dim, width)
    scratch, out = torch.full((size + past,), 7.0), torch.full((count + 1, dim), 7.0)
    pointers = (*(array.data_ptr() for array in arrays), None, out.data_ptr(), scratch.data_ptr())
    assert variant.intermoe_experts_forward_cpu(*pointers, count, 4, dim, 1, width, 0, 0, 2) == 0
    assert (scratch[size:] == 7).all()
    assert (out[count:] == 7).all()
    assert (out[:count] != 7).all()


def test_the_gradient_of_an_offset_is_summed_without_loss(variant: ctypes.CDLL) -> None:
    """In float32 the ones would be lost beside the first number."""
    numbers = torch.tensor([[2.0**25, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0], [-(2.0**25), 5.0]])
    hidden, statistics = torch.zeros(5, 3), (torch.zeros(5), torch.ones(5))
    found = route_backward(torch.zeros(5, 3), numbers, hidden, statistics, torch.zeros(2, 3), None, True, 1)
    assert found[2].tolist() == [[3.0, 15.0]]


def test_a_token_without_an_expert_has_no_gradient_whatever_its_logits(variant: ctypes.CDLL) -> None:
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 0.0], [float("inf"), float("inf")]])
    slots = torch.tensor([[-1, -1], [0, -1], [-1, -1]])
    found = select_backward(torch.tensor([2.0]), logits, slots)
    assert found.tolist() == [[0.0, 0.0], [0.5, -0.5], [0.0, 0.0]]


def test_normalised_tokens_of_a_mean_that_a_sum_loses(variant: ctypes.CDLL) -> None:
    """What the sum of so many large numbers is off by is taken off the tokens too."""
    from intermoe.kernels.native.route import route_forward

    hidden = torch.randn(3, 3001, generator=torch.Generator().manual_seed(0)) + 1e6
    tokens = route_forward(hidden, torch.zeros(1, 3001), None, None, None)[0]
    exact = hidden.double() - hidden.double().mean(1, keepdim=True)
    exact /= (exact.square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert (tokens.double().mean(1)).abs().max() < 1e-6
    assert (tokens.double() - exact).abs().max() < 2e-5


def test_what_failed_is_told_to_the_thread_that_called(native: ctypes.CDLL) -> None:
    told: dict[str, bytes] = {}

    def work() -> None:
        told["before"] = native.intermoe_last_error()
        answer(native, "combine", {**NUMBERS["combine"], "dtype": 9})
        told["after"] = native.intermoe_last_error()

    assert answer(native, "combine", {**NUMBERS["combine"], "dtype": 5}) != 0
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert told == {"before": b"", "after": b"unknown dtype code 9"}
    assert native.intermoe_last_error() == b"unknown dtype code 5"


@pytest.mark.parametrize(("outputs", "depth", "paired"), [(37, 9, False), (32, 5, False), (38, 9, True), (64, 3, True)])
def test_a_packed_weight_keeps_within_its_memory(variant: ctypes.CDLL, outputs: int, depth: int, paired: bool) -> None:
    """Whole panels of two vectors, the last filled up with zeros; no number is lost."""
    weight = torch.rand(outputs, depth) + 1
    vector = {"baseline": 4, "avx2": 8, "avx512": 16}[library.instruction_set()]
    columns, panel = (outputs // 2, vector) if paired else (outputs, 2 * vector)
    count = variant.intermoe_packed_count(outputs, depth, int(paired))
    assert count == -(-columns // panel) * 2 * vector * depth
    made = torch.full((count + 64,), -7.0)
    sizes = (1, depth, outputs, depth, int(paired))
    assert variant.intermoe_pack_cpu(weight.data_ptr(), *sizes, made.data_ptr(), 0, 2) == 0
    assert (made[count:] == -7).all()
    packed = made[:count]
    assert torch.equal(packed[packed != 0].sort().values, weight.flatten().sort().values)
