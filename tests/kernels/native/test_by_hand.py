"""The Python side of the native backend by hand: how pairs are cut, who multiplies, what is kept, and what is told."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import backends
from intermoe.kernels.contract import Experts, Route, Select
from intermoe.kernels.native import experts, library, moe, products, registry, route
from intermoe.ops.moe import moe as operation

status: Any = import_module("intermoe.kernels.native.status")  # the package has a function of that name


@pytest.fixture
def native() -> Any:
    found = backends.available()["native"]
    if not found.usable:
        pytest.skip(f"native backend: {found.reason}")
    return backends.load("native")


def test_pairs_are_cut_into_segments() -> None:
    """At most 10 of an expert, neighbours of together at most 6 in one; rows of outputs are numbered through."""
    ranges = [(0, 13), (13, 13), (13, 15), (15, 16), (20, 22), (22, 26), (26, 27)]
    found = list(experts.segments(ranges, 10, 6))
    assert found == [
        (0, 10, 0, [(0, slice(0, 10))]),
        (10, 16, 10, [(0, slice(0, 3)), (2, slice(3, 5)), (3, slice(5, 6))]),
        (20, 26, 16, [(4, slice(0, 2)), (5, slice(2, 6))]),  # pairs 16 to 19 are not computed
        (26, 27, 22, [(6, slice(0, 1))]),
    ]
    assert list(experts.segments([(3, 3), (3, 3)], 10, 6)) == []


@pytest.mark.parametrize(
    ("pairs", "rows"), [(0, 0), (1, 0), (2, 1), (672, 336), (674, 169), (1344, 336), (1346, 225), (2020, 253)]
)
def test_rows_of_a_packed_weight_are_parts_of_about_one_size(pairs: int, rows: int) -> None:
    """Of two experts, at most 336 at a time: 1010 each, say, are four parts of 253 or less."""
    assert experts._rows_at_a_time(pairs, torch.empty(2, 4, 3)) == rows


def test_few_operations_are_the_library_s_own_and_others_go_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of D F and one of twice the width, 2 operations each: 6 P D F."""
    asked: list[tuple[str, torch.dtype, int]] = []
    monkeypatch.setattr(products, "choice", lambda *given: asked.append(given) or "torch")
    monkeypatch.setattr(experts, "FEW_OPERATIONS", 6 * 1000 * 4 * 5)
    weight = torch.empty(2, 4, 5)
    assert experts.own_products(torch.float32, 1000, weight)
    assert not asked
    assert not experts.own_products(torch.float32, 1001, weight)
    assert not experts.own_products(torch.bfloat16, 1350, weight, packed=True)
    assert asked == [("rows", torch.float32, 500), ("packed", torch.bfloat16, 225)]
    monkeypatch.setattr(products, "choice", lambda *given: "own")
    assert experts.own_products(torch.float32, 1001, weight)


@pytest.mark.parametrize(
    ("counts", "segment", "merged", "longest"),
    [
        ([3, 20, 4], 8, 4, 8),  # a segment's most
        ([3, 6, 4], 8, 4, 6),  # the most of an expert
        ([1, 2, 1], 8, 3, 3),  # neighbours together
        ([1, 0, 1], 8, 5, 2),  # all there are
        ([9, 9], 4, 512, 4),  # neighbours are no more than a segment
    ],
)
def test_the_workspace_is_of_the_longest_segment(
    counts: list[int], segment: int, merged: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "SEGMENT_ROWS", segment)
    monkeypatch.setattr(experts, "MERGED_ROWS", merged)
    offsets, index = torch.tensor([0, *counts]).cumsum(0), torch.zeros(sum(counts), dtype=torch.int64)
    weights = torch.zeros(len(counts), 10, 4), torch.zeros(len(counts), 4, 5)
    problem = experts.Problem(torch.zeros(2, 4), index, offsets, *weights)
    assert problem.workspace(7).shape == (longest, 7)
    found = list(problem.segments(problem.ranges))
    assert max(last - first for first, last, *_ in found) == longest
    grads = experts.Backward(
        problem, torch.zeros(2, 4), torch.zeros(sum(counts)), torch.zeros(sum(counts), 10), True, (True, False, True)
    )
    assert grads.inputs is None, "tokens are read for the gradient of w_gate_up, or for h, alone"


def call_of(tokens: int = 8, **changes: Any) -> tuple[Route, Select, Experts]:
    """8 tokens of width 3, 4 experts of width 5."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    given = Route(draw(tokens, 3), draw(4, 3), draw(2, 4), draw(2, 3), draw(2, 3))
    weights = nn.Parameter(draw(4, 10, 3)), nn.Parameter(draw(4, 3, 5))
    select = Select(torch.full((4,), -0.5), torch.rand(tokens, 4, generator=g) > 0.2)
    return given._replace(**changes), select, Experts(*weights)


@pytest.mark.parametrize(("least", "calls"), [(8 * 4 * (3 + 5), 1), (8 * 4 * (3 + 5) - 1, 0)])
def test_a_pool_of_few_elements_is_one_call(
    native: Any, least: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for module in (moe, route, experts):
        original = module.call
        monkeypatch.setattr(module, "call", lambda name, *a, _f=original: (made.append(name), _f(name, *a))[1])
    monkeypatch.setattr(moe, "FEW_ELEMENTS", least)
    moe.moe_inference(*call_of())
    assert made.count("moe_forward") == calls
    assert ("route_forward" in made) == (not calls)


NAMES = ("hidden", "router_weight", "router_offset", "scale", "shift", "selection_bias", "valid", "w_gate_up", "w_down")


def turned(tensor: Tensor) -> Tensor:
    """The same values, elements apart."""
    return torch.stack([tensor.detach(), tensor.detach()], dim=-1)[..., 0]


@pytest.mark.parametrize("name", NAMES)
def test_each_argument_that_lies_otherwise_is_read_as_it_is(native: Any, name: str, relative_error: Any) -> None:
    """In the smallest pools, which would be one call of the library."""
    given = call_of()
    wanted, counts = operation(*given, backend="reference")[:2]
    route_, select, weights = given
    assert moe._is_few(*given, None)
    for step in (route_, select, weights):
        if name in step._fields:
            changed = step._replace(**{name: turned(getattr(step, name))})
            given = tuple(changed if each is step else each for each in given)
    assert not moe._is_few(*given, None)
    with torch.no_grad():
        found = operation(*given, backend="native")
    assert relative_error(found.out, wanted) < 1e-5
    assert torch.equal(found.counts, counts)


def test_inference_keeps_weights_packed_and_no_activations(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "FEW_ELEMENTS", 0)
    monkeypatch.setattr(products, "choice", lambda *_: "own")
    made: list[experts.Forward] = []
    original = experts.Forward.__init__

    def init(self: experts.Forward, *given: Any, **options: Any) -> None:
        original(self, *given, **options)
        made.append(self)

    monkeypatch.setattr(experts.Forward, "__init__", init)
    route_, select, weights = call_of()
    moe.moe_inference(route_, select, weights)
    assert [weight in products._kept for weight in weights[:2]] == [True, True]
    assert made[-1].packed
    assert len(made[-1].h) == 0
    for recompute in (False, True):
        _, counts, saved = moe.moe_forward(route_, select, weights._replace(recompute=recompute))
        assert not made[-1].packed, "weights that are trained are others at each call"
        assert len(saved.h) == (0 if recompute else int(counts.sum()))
        assert len(saved.mean) == len(saved.rstd) == 8
    plain = Route(route_.hidden, route_.router_weight, normalise=False)
    assert [len(each) for each in moe.moe_forward(plain, select, weights)[2][1:4]] == [0, 0, 0]


@pytest.mark.parametrize(("page", "rows"), [(4096, 3), (4096, 1), (1 << 16, 3), (0, 3)])
def test_large_arrays_lie_on_the_boundary_of_a_large_page(
    page: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are such pages and the array is no smaller than one."""
    wishes: list[tuple[int, int]] = []
    known = SimpleNamespace(
        intermoe_large_page=lambda: page, intermoe_use_large_pages=lambda *given: wishes.append(given)
    )
    monkeypatch.setattr(library, "load", lambda: known)
    for _ in range(4):
        like = torch.empty(0, dtype=torch.float16)
        made = products._in_large_pages(like, rows, 1000)
        assert (made.shape, made.dtype, made.is_contiguous()) == ((rows, 1000), like.dtype, True)
        if rows * 1000 * 2 < page or page == 0:
            assert not wishes
            continue
        assert made.data_ptr() % page == 0
        assert wishes[-1] == (made.data_ptr(), rows * 1000 * 2)
        made.fill_(1.0)


@pytest.mark.parametrize(
    ("units", "name"), [(0, "amd avx2"), (1, "amd avx2+bf16"), (2, "amd avx2+fp16"), (3, "amd avx2+bf16+fp16")]
)
def test_a_machine_is_named_by_what_its_products_hang_on(
    units: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for asked, told in (("half_units", units), ("vendor", "amd"), ("instruction_set", "avx2")):
        monkeypatch.setattr(library, asked, lambda told=told: told)
    assert products.machine.__wrapped__() == name


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What is known of the machine is asked anew, before and after."""
    products._limits.cache_clear()
    yield
    products._limits.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_what_was_measured_on_the_machine_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ((2, "torch"), (5, "own"), (None, "float32"))
    monkeypatch.setattr(products, "machine", lambda: "here")
    monkeypatch.setattr(library, "instruction_set", lambda: "baseline")
    monkeypatch.setattr(products, "FASTEST", {"here": {("float32", "rows"): limits}, "there": {}})
    found = [products.choice("rows", torch.float32, rows) for rows in (1, 2, 3, 5, 6, 10**9)]
    assert found == ["torch", "torch", "own", "own", "float32", "float32"]
    assert products.choice("columns", torch.float32, 3) == "torch", "and what others of its kind have elsewhere"


@pytest.mark.parametrize("name", ["own", "torch", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_goes_into_part_of_an_array(
    native: Any, name: str, dtype: torch.dtype, add: bool, relative_error: Any, tolerance: Any
) -> None:
    """As a segment's does, whose rows are as wide as the array's."""
    left, right = torch.randn(5, 9).to(dtype), torch.randn(9, 7).to(dtype)
    whole = torch.full((6, 11), 3.0, dtype=dtype)
    products.run(name, left, right, whole[1:, 2:9], add=add)
    assert relative_error(whole[1:, 2:9], left.double() @ right.double() + 3 * add) <= tolerance(dtype)
    whole[1:, 2:9] = 3.0
    assert (whole == 3).all()


@pytest.mark.parametrize("name", ["own", "torch", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_s_product_by_each_of_the_choices(
    native: Any, name: str, dtype: torch.dtype, with_bias: bool, monkeypatch: pytest.MonkeyPatch,
    relative_error: Any, tolerance: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(products, "choice", lambda *_: name)
    x, weight = torch.randn(2, 3, 9).to(dtype), nn.Parameter(torch.randn(7, 9).to(dtype))
    bias = 5 * torch.randn(7).to(dtype) if with_bias else None
    found = products.linear(x, weight, bias)
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (found.shape, found.dtype) == ((2, 3, 7), dtype)
    assert relative_error(found, expected) <= tolerance(dtype)


def test_arguments_are_told_by_name_with_what_came() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    x = torch.zeros(2, 3)
    assert registry.dense("x", x, cpu, torch.float32, 2, 3) is x
    with pytest.raises(ValueError, match=r"^x: expected a tensor on meta, where the others are, got one on cpu$"):
        registry.dense("x", x, meta, torch.float32, 2, 3)
    with pytest.raises(TypeError, match=r"^x: expected dtype torch.float16, got torch.float32$"):
        registry.dense("x", x, cpu, torch.float16, 2, 3)
    with pytest.raises(ValueError, match=r"^x: expected shape \(3, 2\), got \(2, 3\)$"):
        registry.dense("x", x, cpu, torch.float32, 3, 2)
    with pytest.raises(TypeError, match=r"^x: expected float32, float16 or bfloat16, got torch.float64$"):
        registry.storage_code("x", x.double())
    assert [registry.storage_code("x", x.to(dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)] == [
        0, 1, 2,
    ]  # fmt: skip
    index, offsets = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    weights = torch.zeros(1, 10, 3), torch.zeros(1, 3, 5)
    for name, changed in (("w_gate_up", (weights[0].to("meta"), weights[1])), ("w_down", (weights[0], weights[1]))):
        if name == "w_down":
            changed = (weights[0], weights[1].to("meta"))
        with pytest.raises(ValueError, match=rf"^{name}: expected a tensor on cpu, where tokens is, got one on meta$"):
            experts.Problem(x, index, offsets, *changed)
    with pytest.raises(ValueError, match=r"^router_offset: expected a divisor of 4 tokens as its .*, got 3$"):
        route.route_forward(torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(3, 2), None, None)
    for rows in (0, 3):
        with pytest.raises(ValueError, match=rf"^rows: expected a divisor of the number of tokens 4, got {rows}$"):
            route.route_backward(
                torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 3), (torch.zeros(4),) * 2, torch.zeros(2, 3),
                None, True, rows,
            )  # fmt: skip


def test_the_library_may_use_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the last argument; and on CUDA the device and its stream are."""
    handed: list[tuple[Any, ...]] = []

    def function(name: str, cuda: bool) -> Any:
        return lambda *given: handed.append((name, cuda, *given)) or 0

    monkeypatch.setattr(registry, "_function", function)
    x, y = torch.zeros(2), torch.ones(3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            registry.call("step", x, y, None, 7, 0.5)
            assert handed.pop() == ("step", False, x.data_ptr(), y.data_ptr(), None, 7, 0.5, threads)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(registry, "on_cuda", lambda tensor: True)
    monkeypatch.setattr(registry, "stream_of", lambda tensor: (2, 4711))
    registry.call("step", x, 7)
    assert handed == [("step", True, x.data_ptr(), 7, 2, 4711)]


@pytest.mark.parametrize(
    ("system", "name"),
    [("win32", "intermoe_native.dll"), ("darwin", "libintermoe_native.dylib"), ("linux", "libintermoe_native.so")],
)
def test_the_library_is_named_as_the_system_names_them(system: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert library.library_path() == Path(library.__file__).parent / name


class Known:
    """A library that says of its machine what it is told to."""

    def __init__(self, units: int = 0, built: int = 1, code: int = 0) -> None:
        self.intermoe_half_units, self.intermoe_cuda_built = lambda: units, lambda: built
        self.intermoe_last_error = lambda: b"no kernel image"
        self.asked: list[int] = []
        self.intermoe_check_cuda = lambda device: self.asked.append(device) or code
        self.intermoe_instruction_set = lambda: b"avx2"


@pytest.mark.parametrize(("units", "known"), [(-1, None), (0, 0), (3, 3)])
def test_units_that_are_not_known_are_not_none_at_all(
    units: int, known: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: Known(units))
    assert library.half_units() == known


CUDA = {
    "not built": (Known(built=0), 0, "no CUDA kernels, as there was no nvcc when intermoe was installed",
                  "install the CUDA toolkit (nvcc) and install intermoe again"),
    "no device": (Known(), None, "no CUDA device for the CUDA kernels",
                  "use a machine with an NVIDIA GPU and a CUDA build of torch"),
    "too old": (Known(code=1), 3, "the CUDA kernels do not run on device 3: no kernel image",
                "update the NVIDIA driver, or use a GPU of compute capability 8.0 or newer"),
}  # fmt: skip


@pytest.mark.parametrize("name", CUDA)
def test_why_cuda_is_not_served_and_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, device, reason, remedy = CUDA[name]
    monkeypatch.setattr(library, "load", lambda: known)
    with pytest.raises(library.LibraryUnavailable) as told:
        library.check_cuda(device)
    assert (told.value.reason, told.value.remedy, str(told.value)) == (reason, remedy, f"{reason}; {remedy}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device is not None)
    found = status.status.__wrapped__()
    reason = reason.replace("device 3", "device 0")  # the first one
    expected = ("native", True, ("cpu",), f"C++ kernels, avx2; {reason}", remedy)
    assert (found.name, found.usable, found.devices, found.reason, found.remedy) == expected


def test_what_serves_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    monkeypatch.setattr(library, "load", lambda: known)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = status.status.__wrapped__()
    assert (found.usable, found.devices, found.reason) == (True, ("cpu", "cuda"), "C++ kernels, avx2; CUDA kernels")
    assert known.asked == [0]
    assert (status.AUTOMATIC, status.HALF_SUMS) == (("cpu", "cuda"), False)
    assert status.allocated_pairs(5, 3, 7) is None
    cpu, told = torch.device("cpu"), "serves float32, float16 and bfloat16 only"
    served = (torch.float32, torch.float16, torch.bfloat16)
    assert [status.refusal(cpu, dtype) for dtype in (*served, torch.float64)] == [None, None, None, told]
