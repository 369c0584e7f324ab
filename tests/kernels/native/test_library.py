"""What the library refuses, and that chunks of tokens change nothing: calls as other parts of the package make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native import experts, library, moe
from intermoe.kernels.native.registry import CODES, call
from intermoe.ops.experts import experts_reference


@pytest.fixture(autouse=True)
def native() -> Any:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return library.load()


@pytest.mark.parametrize("level", [-1, 3])
def test_an_instruction_set_that_there_is_not_is_refused(native: Any, level: int) -> None:
    own = library.instruction_set()
    assert native.intermoe_use_instruction_set(level) != 0
    assert f"got {level}" in native.intermoe_last_error().decode()
    assert library.instruction_set() == own


def test_what_is_said_of_the_processor_is_what_the_system_says(native: Any) -> None:
    """It chooses the variant, the row of the table of products, and whether half types have units of their own."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        pytest.skip("there is no /proc/cpuinfo")
    said = dict(line.replace("\t", "").split(":", 1) for line in text.splitlines() if ":" in line)
    flags = set(said.get("flags", "").split())
    if not flags or "vendor_id" not in said:
        pytest.skip("/proc/cpuinfo lists no flags of an x86 processor")
    variants = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"}}
    wanted = [name for name, needed in variants.items() if needed <= flags]
    assert library.instruction_set() == ["baseline", *wanted][-1]
    assert library.vendor() == {"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(said["vendor_id"].strip(), "other")
    bfloat16, float16 = {"avx512_bf16", "amx_bf16"} & flags, {"avx512_fp16", "amx_fp16"} & flags
    units = (1 if bfloat16 else 0) + (2 if float16 else 0) if "avx512" in wanted else 0
    assert library.half_units() == units


@pytest.mark.parametrize("ranges", [[[-1, 2], [2, 3]], [[0, 2], [2, 1]], [[0, 2], [2, 4]]])
def test_ranges_of_pairs_that_there_are_not_are_refused(native: Any, ranges: list[list[int]]) -> None:
    tokens, index, made = torch.randn(4, 8), torch.tensor([0, 1, 3]), torch.tensor(ranges)
    weights, out = (torch.randn(2, 10, 8), torch.randn(2, 8, 5)), torch.empty(3, 8)
    scratch = torch.empty(native.intermoe_experts_scratch(3, 8, 5))
    with pytest.raises(RuntimeError, match=r"pairs .* of expert . are not within the 3 pairs"):
        call("experts_forward", tokens, index, made, *weights, None, out, scratch, 3, 4, 8, 2, 5, 0, CODES[out.dtype])


@pytest.mark.parametrize("own", [True, False])
def test_outputs_come_by_ranges_of_pairs(own: bool, relative_error: Callable[..., float], monkeypatch: Any) -> None:
    """Of each expert some pairs, as a chunk of tokens has them: their outputs are the first rows, in order."""
    monkeypatch.setattr(experts, "own_products", lambda *_, **__: own)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    tokens, weights = draw(9, 12), (draw(3, 14, 12), draw(3, 12, 7))
    index, offsets = torch.tensor([0, 2, 5, 8, 1, 2, 7, 0, 4, 6, 8]), torch.tensor([0, 4, 7, 11])
    expected = experts_reference(tokens.double(), index, offsets, *(weight.double() for weight in weights))
    forward = experts.Forward(experts.Problem(tokens, index, offsets, *weights), save_h=True)
    out = torch.full((11, 12), torch.nan)
    for ranges, pairs in (
        ([(0, 2), (4, 4), (7, 9)], [0, 1, 7, 8]),
        ([(2, 4), (4, 7), (9, 11)], [2, 3, 4, 5, 6, 9, 10]),
    ):
        forward.run(ranges, out)
        assert relative_error(out[: len(pairs)], expected[pairs]) < 1e-6
        assert out[7:].isnan().all(), "nothing is written beyond them"


@pytest.mark.parametrize("own", [True, False])
def test_chunks_of_tokens_change_nothing(own: bool, relative_error: Callable[..., float], monkeypatch: Any) -> None:
    from intermoe.kernels.contract import Experts, Route, Select

    monkeypatch.setattr(experts, "own_products", lambda *_, **__: own)
    monkeypatch.setattr(moe, "own_products", lambda *_, **__: False)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    route, select = Route(draw(50, 12), draw(3, 12)), Select(torch.full((3,), -0.5))
    weights = Experts(draw(3, 14, 12), draw(3, 12, 7))
    whole = moe.moe_inference(route, select, weights)[0]
    for tokens in (1, 7, 49):  # of a chunk: one, some with a rest, all but one
        bytes_per_token = int(moe.moe_forward(route, select, weights)[1].sum()) * 12 * 4 / 50
        monkeypatch.setattr(moe, "CHUNK_BYTES", int(tokens * bytes_per_token + 1))
        assert relative_error(moe.moe_inference(route, select, weights)[0], whole) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weights_gradient_is_summed_in_float32(dtype: torch.dtype) -> None:
    """Of several segments: 1 is lost beside 2 / eps in the half type, seven of them are not."""
    large = 2 / torch.finfo(dtype).eps
    gradient = experts.WeightGradient(torch.zeros(2, 1, 1, dtype=dtype), single=False)
    for value in (large, *[1.0] * 7):
        gradient.add(0, torch.full((1, 1), value, dtype=dtype), torch.ones(1, 1, dtype=dtype))
    assert gradient.finish().flatten().tolist() == [float(torch.tensor(large + 7).to(dtype)), 0.0]
    assert gradient.grad.dtype == dtype


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_loss_of_logits_and_output_has_the_gradient_of_both(
    share: float, relative_error: Callable[..., float]
) -> None:
    """``share`` 0: of the logits alone, as a router's own loss has it."""
    from intermoe.kernels.contract import Experts, Route, Select
    from intermoe.ops.moe import moe as whole

    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((30, 12), (3, 12), (3, 14, 12), (3, 12, 7))]
    found = []
    for backend in ("reference", "native"):
        hidden, router, up, down = (tensor.clone().requires_grad_() for tensor in drawn)
        result = whole(Route(hidden, router), Select(torch.full((3,), -0.5)), Experts(up, down), backend=backend)
        assert result.logits is not None
        (share * result.out.square().mean() + result.logits.square().sum(dim=0)[1]).backward()
        found.append([hidden.grad, router.grad, *((up.grad, down.grad) if share else ())])
    for expected, actual in zip(*found, strict=True):
        assert relative_error(actual, expected) < 1e-5
