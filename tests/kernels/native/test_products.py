"""The experts' forward with the library's own products, in every variant of this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native import experts, library
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
    results = []
    for threads in (1, 3):
        out, h = tokens.new_full((num_pairs, dim), torch.nan), tokens.new_full((num_pairs, 2 * width), torch.nan)
        scratch = torch.full((native.intermoe_experts_scratch(num_pairs, dim, width),), torch.nan)
        arrays = (tokens, token_idx, ranges, gate_up, down, h, out, scratch)
        sizes = (num_pairs, num_tokens, dim, num_experts, width, CODES[dtype], threads)
        assert native.intermoe_experts_forward_cpu(*(array.data_ptr() for array in arrays), *sizes) == 0
        results.append((out, h))
    assert relative_error(results[0][0], expected) <= tolerance(dtype)
    wanted = [tokens[i].double() @ gate_up[e].double().T for e, i in enumerate(token_idx.split(counts))]
    assert relative_error(results[0][1], torch.cat(wanted)) <= tolerance(dtype)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "the number of threads changes nothing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_without_onednn_are_the_library_s_own(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> bool:
        raise AttributeError("this torch has no such operator")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, unknown)
    monkeypatch.setattr(experts, "_multiplies", experts._multiplies.__wrapped__)
    assert experts.own_products(dtype, 10**6, torch.empty(2, 1024, 1024, device="meta"))
