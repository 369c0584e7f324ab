"""The library's own products, and the experts' forward with them, in every variant of this machine."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from intermoe import backends
from intermoe.kernels.native import library, products
from intermoe.kernels.native.fastest import FASTEST
from intermoe.kernels.native.registry import CODES
from intermoe.ops.experts import experts_reference


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def native(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    variants, found = ("baseline", "avx2", "avx512"), library.load()
    own = variants.index(library.instruction_set())
    if found.intermoe_use_instruction_set(variants.index(request.param)) != 0:
        pytest.skip(f"{request.param}: {found.intermoe_last_error().decode()}")
    yield found
    found.intermoe_use_instruction_set(own)


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize(
    ("dim", "width", "counts"),
    [
        (32, 48, [5, 0, 13, 1]),  # whole panels of every variant; rows that fill no tile, no row
        (7, 9, [6, 12, 4]),  # less than a panel
        (33, 17, [700, 900]),  # tails behind whole panels; more rows than the workspace has
        (8, 8, [1] * 70),  # more experts than a block of parts holds
    ],
)
def test_products(native, dtype, dim: int, width: int, counts: list[int], relative_error, tolerance) -> None:
    g = torch.Generator().manual_seed(0)
    num_tokens, num_pairs, num_experts = 40, sum(counts), len(counts)
    tokens, gate_up, down = (
        torch.randn(*shape, generator=g).div(shape[-1] ** 0.5).to(dtype)
        for shape in ((num_tokens, dim), (num_experts, 2 * width, dim), (num_experts, dim, width))
    )
    token_idx = torch.randint(0, num_tokens, (num_pairs,), generator=g)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    ranges = torch.stack([offsets[:-1], offsets[1:]], dim=1).contiguous()
    expected = experts_reference(tokens.double(), token_idx, offsets, gate_up.double(), down.double())
    held = products._pack(gate_up, paired=True), products._pack(down, paired=False)
    results = []
    for threads, weights in ((1, (gate_up, down)), (3, (gate_up, down)), (2, held)):
        out, h = tokens.new_full((num_pairs, dim), torch.nan), tokens.new_full((num_pairs, 2 * width), torch.nan)
        scratch = torch.full((native.intermoe_experts_scratch(num_pairs, dim, width),), torch.nan)
        arrays = (tokens, token_idx, ranges, *weights, h, out, scratch)
        sizes = (num_pairs, num_tokens, dim, num_experts, width, int(weights is held), CODES[dtype], threads)
        assert native.intermoe_experts_forward_cpu(*(array.data_ptr() for array in arrays), *sizes) == 0
        results.append((out, h))
    assert relative_error(results[0][0], expected) <= tolerance(dtype)
    wanted = [tokens[i].double() @ gate_up[e].double().T for e, i in enumerate(token_idx.split(counts))]
    assert relative_error(results[0][1], torch.cat(wanted)) <= tolerance(dtype)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), "nor threads nor packing matter"


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("layout", ["rows", "columns", "sums", "packed", "neither"])
@pytest.mark.parametrize(
    ("rows", "outputs", "depth"),
    [
        (29, 64, 32),  # whole panels, rows that make tiles of unequal size
        (1, 5, 1),  # less than anything
        (350, 71, 401),  # two blocks of rows and of depth, tails everywhere
        (15, 33, 1024),  # rows 4 KB apart, which are copied first
    ],
)
@pytest.mark.parametrize("add", [False, True])
def test_product(native, dtype, layout, rows, outputs, depth, add, relative_error, tolerance) -> None:
    g = torch.Generator().manual_seed(0)
    left = torch.randn(rows, depth, generator=g).to(dtype)
    weight = torch.randn(outputs, depth, generator=g).to(dtype)
    bias = torch.randn(outputs, generator=g).to(dtype)
    right, b = weight.T, None
    if layout in ("columns", "sums"):
        right = right.contiguous()
    if layout == "sums":
        left = left.T.contiguous().T
    if layout == "neither":
        left = torch.stack([left, left], dim=2)[..., 0]
        right = torch.stack([right, right], dim=2)[..., 0]
    strides = right.stride()
    if layout == "packed":
        right, b, strides = products._pack(weight, paired=False), bias, (0, 0)
    out = torch.randn(rows, outputs, generator=g)
    expected = left.double() @ weight.double().T + (0 if b is None else b.double()) + (out.double() if add else 0)
    results = []
    for threads in (1, 3):
        made = out.clone() if add else torch.full_like(out, torch.nan)  # float32 whatever the factors are
        pointers = (right.data_ptr(), *strides, int(layout == "packed"), None if b is None else b.data_ptr())
        sizes = (outputs, rows, outputs, depth, int(add), 1, CODES[dtype], threads)
        assert native.intermoe_product_cpu(left.data_ptr(), *left.stride(), *pointers, made.data_ptr(), *sizes) == 0
        results.append(made)
    assert relative_error(results[0], expected) <= tolerance(torch.float32)
    assert torch.equal(*results), "the number of threads changes nothing"


CASES = [
    (name, dtype, add)
    for name, dtype, add in itertools.product(products.CHOICES, CODES, (False, True))
    if name != "onednn" or not (add or dtype == torch.float16)  # it adds nothing, and has no float16 on most CPUs
]


@pytest.mark.parametrize(("name", "dtype", "add"), CASES)
def test_choices_agree(name: str, dtype, add: bool, relative_error, tolerance) -> None:
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 40, generator=g).to(dtype) for _ in range(2))
    for a, b in ((left, right.T), (left, right), (left.T, right)):
        if name == "onednn" and b is right:
            continue
        for kept in {dtype, torch.float32}:
            if name == "onednn" and kept != dtype:
                continue
            out = torch.ones(40, 40, dtype=kept)
            products.run(name, a, b, out, add=add)
            assert relative_error(out, a.double() @ b.double() + int(add)) <= tolerance(dtype)


def test_the_table_is_asked_by_form_type_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sum over rows by how many are summed, whatever the height of what is made."""
    asked: list[tuple[str, torch.dtype, int]] = []
    monkeypatch.setattr(products, "choice", lambda *given: asked.append(given) or "torch")
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(7, 5).to(dtype), torch.randn(5, 3).to(dtype)
        products.product(left, right.T.contiguous().T, torch.empty(7, 3, dtype=dtype))
        products.product(left, right, torch.empty(7, 3, dtype=dtype))
        products.product(torch.randn(5, 7).to(dtype).T, right, torch.empty(7, 3, dtype=dtype))
        assert asked == [("rows", dtype, 7), ("columns", dtype, 7), ("sums", dtype, 5)]
        asked.clear()
        products.linear(torch.randn(2, 4, 5).to(dtype), nn.Parameter(torch.randn(3, 5).to(dtype)), None)
        assert set(asked) == {("packed", dtype, 8), ("rows", dtype, 8)}
        asked.clear()


def test_table_is_complete() -> None:
    for machine, rows in FASTEST.items():
        for (dtype, form), limits in rows.items():
            assert form in products.FORMS, machine
            assert getattr(torch, dtype) in CODES, machine
            bounds, names = zip(*limits, strict=True)
            assert bounds[-1] is None, (machine, dtype, form)
            assert list(bounds[:-1]) == sorted(bounds[:-1]), (machine, dtype, form)
            assert set(names) <= {*products.CHOICES, *([products.ORDERED] if form == "packed" else [])}
            assert "onednn" not in names or form in ("packed", "rows")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_without_onednn_are_the_library_s_own(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> bool:
        raise AttributeError("this torch has no such operator")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, unknown)
    assert not products.has_units(dtype)
    for variant in ("baseline", "avx2", "avx512"):
        assert products._unmeasured("rows", dtype, variant) == ((None, "own"),)


@pytest.mark.parametrize(("units", "bfloat16", "float16"), [(0, False, False), (1, True, False), (2, False, True)])
def test_units_of_each_half_type_are_known_apart(
    units: int, bfloat16: bool, float16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(library, "half_units", lambda: units)
    found = [products.has_units(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    assert found == [bfloat16, float16, True]


@pytest.mark.parametrize(
    ("instruction_set", "dtype", "units", "form", "expected"),
    [
        ("avx512", torch.float32, 0, "columns", {1: "own", 500: "own"}),
        ("avx2", torch.float32, 0, "packed", {64: "own", 65: "torch"}),
        ("avx2", torch.float32, 0, "rows", {64: "own", 65: "torch"}),
        ("avx2", torch.float32, 0, "columns", {1: "torch", 500: "torch"}),
        ("baseline", torch.float32, 0, "packed", {1: "torch", 500: "torch"}),
        ("avx2", torch.bfloat16, 0, "packed", {1: "own", 500: "own"}),
        ("avx2", torch.bfloat16, 0, "columns", {1: "float32", 500: "float32"}),
        ("avx2", torch.bfloat16, 1, "packed", {1: "torch", 500: "torch"}),
        ("avx512", torch.float16, 1, "columns", {1: "own", 500: "own"}),
    ],
)
def test_machines_that_are_not_in_the_table(
    instruction_set: str, dtype: torch.dtype, units: int, form: str, expected: dict[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Half units are torch's; without them halves go through our products or float32; ours are fast with few rows."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(library, "half_units", lambda: units)
    monkeypatch.setattr(library, "instruction_set", lambda: instruction_set)
    monkeypatch.setattr(products, "FASTEST", {})
    products.machine.cache_clear(), products._limits.cache_clear()
    try:
        assert {rows: products.choice(form, dtype, rows) for rows in expected} == expected
    finally:
        products.machine.cache_clear(), products._limits.cache_clear()


@pytest.mark.parametrize("layout", ["rows", "neither"])
def test_small_halves_count_in_a_thread_that_flushes_small_floats(native, layout: str) -> None:
    """Training sets that mode; as floats of the same bits these numbers are lost to it."""
    left = torch.tensor([2.0**-24, 3 * 2.0**-20, 2.0**-14, 1023 * 2.0**-24], dtype=torch.float16)[:, None]
    wanted, right = left.float() * 2.0**14, torch.tensor([[2.0**14]], dtype=torch.float16)
    if layout == "neither":
        left = torch.stack([left, left], dim=2)[..., 0]
    out = torch.empty(4, 1)
    torch.set_flush_denormal(True)
    try:
        pointers = (right.data_ptr(), *right.stride(), 0, None)
        sizes = (1, 4, 1, 1, 0, 1, CODES[torch.float16], 1)
        assert native.intermoe_product_cpu(left.data_ptr(), *left.stride(), *pointers, out.data_ptr(), *sizes) == 0
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(out, wanted)
