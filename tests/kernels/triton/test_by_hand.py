"""The host side of the Triton kernels by hand: numbers, names and texts; no kernel runs."""

from __future__ import annotations

import importlib.util
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from intermoe.benchmarks.harness import host, standin
from intermoe.kernels import triton as package
from intermoe.kernels.contract import Needs
from intermoe.kernels.triton import aot, arguments, configs, driver, launch, overflow, registry, tune
from intermoe.kernels.triton.together import Layout, Together
from intermoe.ops.select import select_reference

selection: Any = import_module("intermoe.kernels.triton.select")  # the package has functions of these names
products: Any = import_module("intermoe.kernels.triton.experts")

compiled_alone = pytest.mark.skipif(registry.INTERPRETED, reason="the interpreter compiles nothing")


def test_the_driver_is_found_and_understood_by_what_its_maker_calls_it() -> None:
    """The name under which loaders know the library, and cuda.h's CUDA_ERROR_INVALID_CONTEXT."""
    assert (driver.LIBRARY, driver.NO_CONTEXT) == ("libcuda.so.1", 201)


@pytest.mark.parametrize(
    ("value", "declared", "bits"),
    [
        (7, "u32", 7), (-3, "s32", -3), (5, "b32", 5), (2**40, "u64", 2**40), (-(2**40), "s64", -(2**40)),
        (9, "b64", 9), (1.0, "f32", 0x3F800000), (-2.5, "f32", 0xC0200000), (1e-6, "f32", 0x358637BD),
    ],
)  # fmt: skip
def test_numbers_lie_in_memory_as_a_kernel_declares_them(value: float, declared: str, bits: int) -> None:
    assert driver._bits(value, declared) == bits


def test_pointers_are_of_64_bits() -> None:
    x = torch.zeros(3)
    for declared in ("u64", "b64"):
        assert driver._bits(x, declared) == x.data_ptr()
        assert driver._place(4, declared) == 4
    for value, declared, what in ((x, "u32", "a pointer"), (1.0, "u32", "1.0"), (1, "f32", "1"), (1.0, "f64", "1.0")):
        with pytest.raises(driver.Unknown, match=f"^{what} for a parameter of type {declared}$"):
            driver._bits(value, declared)


def test_launches_go_to_the_current_stream_of_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 100 + device, raising=False)
    streams = [driver.stream_of(torch.device(name))() for name in ("cuda", "cuda:0", "cuda:2", "cpu")]
    assert streams == [100, 100, 102, 0]


def test_small_pools_have_room_for_every_pair() -> None:
    given = ((512, 8, None), (4097, 1, None), (1, 4096, None), (0, 8, None), (9600, 8, 77))
    assert [registry.allocated_pairs(*each) for each in given] == [4096, None, 4096, 0, 77]


@pytest.mark.parametrize(
    ("pairs", "tokens", "room"),
    [
        (0, 50, 0), (1, 500, 16), (16, 500, 16), (17, 500, 32), (100, 5000, 112), (1023, 5000, 1024),
        (1025, 1000, 1056),  # in steps of 32 from 1024 on
        (1025, 1030, 1030), (1030, 1030, 1030),  # as many as there are tokens suffice
        (1031, 1030, 1056), (79, 40, 80), (77, 39, 78),  # no more than all
    ],
)  # fmt: skip
def test_room_of_the_exact_mode_by_hand(pairs: int, tokens: int, room: int) -> None:
    assert registry.room(pairs, tokens, 2) == room


def test_it_is_for_cuda_by_itself_and_has_sums_in_halves() -> None:
    assert (registry.NAME, registry.AUTOMATIC, registry.HALF_SUMS, registry.linear) == ("triton", ("cuda",), True, None)


def test_what_is_kept_together_is_read_alike_on_its_own_and_in_one_piece() -> None:
    parts = (torch.randn(3, 5), torch.tensor([4, 7, 9]), torch.randn(7).half(), torch.tensor([11, 23]))
    layout = Layout(parts)
    assert (layout.offsets, layout.size) == ([0, 256, 512, 768], 1024)
    memory = torch.zeros(layout.size, dtype=torch.uint8)
    joined, apart = Together.of(memory, layout), Together(*parts)
    for there, part in zip(joined.tensors(), parts, strict=True):
        there.copy_(part)
    for made in (joined, apart):
        assert all(map(torch.equal, made.tensors(), parts))
        assert (made.last(1), made.last(3)) == (9, 23)
    assert joined.data_ptr() == memory.data_ptr()
    assert (joined.layout, apart.layout) == (layout, None)
    with pytest.raises(RuntimeError, match=r"^data_ptr: expected tensors in one piece of memory, got each on its own$"):
        apart.data_ptr()


@pytest.mark.parametrize(("experts", "padded"), [(1, 2), (2, 2), (3, 4), (8, 8), (9, 16)])
def test_sizes_of_programs_over_tokens(experts: int, padded: int) -> None:
    assert launch.token_constants(100, experts, 2048, 512) == {
        "DIM": 100, "NUM_EXPERTS": experts, "PADDED_EXPERTS": padded, "BLOCK_S": 16, "BLOCK_D": 128, "num_warps": 4,
    }  # fmt: skip


@compiled_alone
@pytest.mark.parametrize(("precision", "dtype"), [("half", torch.bfloat16), ("tf32", torch.float32)])
def test_what_is_compiled_ahead_is_what_is_launched(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kernel, constants and warps: of inference and of a step of training, each kernel and no other."""
    dim, width = 64, 128
    monkeypatch.setattr(aot, "DIM", dim)
    monkeypatch.setattr(aot, "EXPERT_DIM", width)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with standin.stand_in(together=False) as recorded:
            route, select, experts = host._arguments((40, dim, 8, width, 4, 320), dtype)
            select = select._replace(valid=torch.ones(40, 8, dtype=torch.bool))
            package.moe_inference(route, select, experts)
            out, _, saved = package.moe_forward(route, select, experts)
            grad_logits = torch.zeros(40, 8)
            package.moe_backward(out, grad_logits, route, experts, saved, Needs(*[True] * 7))
            launched = list(recorded.launches)
    finally:
        torch.set_float32_matmul_precision(before)
    wide = aot.tokenwise_specimens("fp32")
    narrow = aot.tokenwise_specimens("bf16")
    once = [one for one in wide if one.name not in {other.name for other in narrow} | {"round"}]
    listed = narrow + once if precision == "half" else wide
    for kernel in configs.KERNELS:
        tile = configs.tile(standin.ARCHITECTURE, kernel, precision, "small")
        listed += aot.grouped_specimens(kernel, precision, tile, dim, width)
    listed = [one for one in listed if "half sums" not in one.name]
    assert len({one.name for one in listed}) == len(listed)

    def is_of(one: standin.Launch, specimen: aot.Specimen) -> bool:
        if (one.name, one.threads) != (specimen.kernel.fn.__name__, 32 * specimen.num_warps):
            return False
        return all(one.arguments.get(name, "absent") == value for name, value in specimen.constants.items())

    assert [one.name for one in listed if not any(is_of(each, one) for each in launched)] == []
    others = [each for each in launched if not any(is_of(each, one) for one in listed)]
    assert [each.name for each in others if each.arguments.get("HAS_GATES", True)] == [], (
        "a sum without gates does less"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("eps", "fp32"), ("num_tokens", "i32"), ("valid_ptr", "*i1"), ("chunk_counts_ptr", "*i32"),
        ("token_idx_ptr", "*i64"), ("offsets_ptr", "*i64"), ("slots_ptr", "*i64"), ("gates_ptr", "*fp32"),
        ("logits_ptr", "*fp32"), ("rstd_ptr", "*fp32"), ("hidden_ptr", "*bf16"), ("scale_ptr", "*bf16"),
    ],
)  # fmt: skip
def test_types_of_what_is_compiled_ahead(name: str, kind: str) -> None:
    assert aot._type_of(name, "bf16") == kind


def test_the_assembler_s_report_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers; and what spills onto the stack or into local memory."""
    given: list[bytes] = []
    text = ["Function k:\n REG:40 STACK:8 SHARED:512 LOCAL:16 CONSTANT[0]:400\n"]

    def run(command: list[str], **options: Any) -> Any:
        given.append(Path(command[-1]).read_bytes())
        return SimpleNamespace(stdout=text[0])

    monkeypatch.setattr(aot.subprocess, "run", run)
    assert aot._assembler_report(b"code") == (40, 24)
    assert given == [b"code"]
    text[0] = "no such option"
    with pytest.raises(RuntimeError, match=r"^cuobjdump -res-usage: expected a line REG:.*, got 'no such option'$"):
        aot._assembler_report(b"code")


@pytest.mark.parametrize("architecture", [80, 86, 90])
def test_tiles_do_not_shrink_from_one_size_of_pools_to_the_next(architecture: int) -> None:
    """More rows an expert are taken in taller tiles of more elements; of few rows a tall one would be empty."""
    shipped = configs.shipped(architecture)
    for kernel in configs.KERNELS[:-1]:
        for precision in configs.PRECISIONS:
            row = [shipped[configs.Key(architecture, kernel, precision, size)] for size in configs.SIZES]
            heights = [tile.block_m for tile in row]
            areas = [tile.block_m * tile.block_n for tile in row]
            assert (heights, areas) == (sorted(heights), sorted(areas)), (kernel, precision)


def test_a_tile_is_of_whole_numbers_and_a_table_s_nesting_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^block_n: expected a power of two >= 16, got 64\.0$"):
        configs.Tile(64, 64.0, 32, 4, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^num_warps: expected a power of two >= 1, got 3$"):
        configs.Tile(64, 64, 32, 3, 3)
    path = tmp_path / "table.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"table\.json: expected valid JSON"):
        configs.read_table(path)
    path.write_text(json.dumps([{**vars(configs.Key(86, "up", "half", "small")), "block_m": 16}]))
    with pytest.raises(ValueError, match=r"table\.json: entry 0: .*block_n"):
        configs.read_table(path)


def test_types_that_there_are_not_are_told_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "INTERPRETED", False)
    with pytest.raises(TypeError, match=r"^x: expected float32 or float16 or bfloat16, got torch\.float64$"):
        arguments.expect("x", torch.zeros(3).double(), 3)
    with pytest.raises(ValueError, match=r"^x: expected shape \(2, 3\), got \(3, 2\)$"):
        arguments.expect("x", torch.zeros(3, 2), 2, 3)
    arguments.expect("x", None, 5)


def test_the_clock_of_a_device_tells_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's tells milliseconds; the median of runs, as a few are interrupted."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        tune.triton.testing, "do_bench", lambda call, **options: (call(), asked.append(options), 0.25)[2]
    )
    called: list[int] = []
    assert tune.device_clock(lambda: called.append(1)) == 250.0
    assert called == [1]
    assert asked[0]["return_mode"] == "median"


def test_as_close_as_the_types_allow() -> None:
    wide, half = torch.ones(100), torch.ones(100, dtype=torch.float16)
    eps = torch.finfo(torch.float16).eps
    assert [tune._close(wide * (1 + off), wide) for off in (0.0, 0.9e-3, 1.1e-3)] == [True, True, False]
    assert [tune._close(half * (1 + steps * eps), half) for steps in (0, 4, 5)] == [True, True, False]


def test_neighbours_of_a_tile_by_hand() -> None:
    """One field doubled, halved or one stage more or less, from 16 to 256, 1 to 16 warps and 1 to 7 stages."""
    found = list(tune.neighbours(configs.Tile(16, 32, 256, 16, 7)))
    assert found == [
        configs.Tile(32, 32, 256, 16, 7), configs.Tile(16, 16, 256, 16, 7), configs.Tile(16, 64, 256, 16, 7),
        configs.Tile(16, 32, 128, 16, 7), configs.Tile(16, 32, 256, 8, 7), configs.Tile(16, 32, 256, 16, 6),
    ]  # fmt: skip
    assert configs.Tile(64, 64, 64, 1, 1) not in found
    small = list(tune.neighbours(configs.Tile(16, 16, 16, 1, 1)))
    assert small == [
        configs.Tile(32, 16, 16, 1, 1), configs.Tile(16, 32, 16, 1, 1), configs.Tile(16, 16, 32, 1, 1),
        configs.Tile(16, 16, 16, 2, 1), configs.Tile(16, 16, 16, 1, 2),
    ]  # fmt: skip


def test_a_workload_s_pairs_are_a_share_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a token on average, drawn for each expert anew; the same each time."""
    monkeypatch.setattr(tune, "select", select_reference)
    for capacity, low, high in ((1.0, 800, 1200), (2.0, 1800, 2200)):
        one, other = (tune.Workload(1000, 8, 4, 4, torch.float32, torch.device("cpu"), capacity) for _ in range(2))
        assert low < len(one.token_idx) < high
        assert torch.equal(one.token_idx, other.token_idx)
        counts = one.offsets.diff().float()
        assert 0 < counts.std() < 0.3 * counts.mean()
        assert torch.equal(one.tokens, other.tokens)
        assert one.tokens.std().item() == pytest.approx(0.5, rel=0.1)  # so that products of width 4 are about 1


def test_pools_beyond_32_bits_and_experts_beyond_64_are_refused() -> None:
    for tokens, experts in ((0, 1), (5, 64), (2**28 - 1, 8), (2**31 - 1, 1)):
        selection._check_size(tokens, experts)
    for experts in (0, 65):
        with pytest.raises(ValueError, match=f"^logits: expected 1 to 64 experts, got {experts}$"):
            selection._check_size(5, experts)
    for tokens, experts in ((2**28, 8), (2**31, 1)):
        told = rf"^logits: expected tokens \* experts < 2\*\*31, got {tokens} \* {experts}$"
        with pytest.raises(ValueError, match=told):
            selection._check_size(tokens, experts)
    for most in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"^max_pairs: expected >= 0 and < 2\*\*31, got {most}$"):
            selection.allocate_and_fill(torch.zeros(2, 3), torch.zeros(3), None, most)


@pytest.mark.parametrize(
    ("dtype", "precision", "name", "rounds"),
    [
        (torch.bfloat16, "highest", "half", False), (torch.float16, "high", "half", False),
        (torch.float32, "highest", "ieee", False), (torch.float32, "high", "tf32", True),
    ],
)  # fmt: skip
def test_what_the_launches_of_a_call_share(
    dtype: torch.dtype, precision: str, name: str, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row tiles: each expert's last may be a part of one, but there are no more than pairs."""
    monkeypatch.setattr(products, "architecture_of", lambda device: 86)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        shared = products.Shared(torch.zeros(490, 6, dtype=dtype), 33, torch.zeros(5, 6, 7, dtype=dtype))
    finally:
        torch.set_float32_matmul_precision(before)
    sizes = (shared.num_tokens, shared.dim, shared.num_experts, shared.expert_dim, shared.num_pairs)
    assert sizes == (490, 6, 5, 7, 33)
    assert (shared.architecture, shared.precision, shared.size, shared.rounds) == (86, name, "medium", rounds)
    assert shared.tile("down") == configs.tile(86, "down", name, "medium")
    tiles = [configs.Tile(size, 32, 16, 4, 3) for size in (16, 32, 64)]
    assert [shared.row_tiles(tile) for tile in tiles] == [3 + 5, 2 + 5, 1 + 5]
    shared.num_pairs = 4
    assert shared.row_tiles(tiles[0]) == 4
    assert shared.rowwise() == {"NUM_EXPERTS": 5, "PADDED_EXPERTS": 8}
    assert shared.blocks(tiles[1]) == {
        "BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16, "PRECISION": "ieee" if name == "ieee" else "tf32",
        "num_warps": 4, "num_stages": 3,
    }  # fmt: skip


@pytest.mark.parametrize("wait", [True, False])
def test_an_overflow_of_the_current_device_is_told_once_it_is_through(
    wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without a number is the current one; without waiting, what has arrived is told."""
    flags = {torch.device("cuda", number): overflow.OverflowFlag(torch.device("cpu")) for number in (0, 1)}
    waited: list[torch.device] = []
    monkeypatch.setattr(overflow, "_flags", flags)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    flags[torch.device("cuda", 1)].numbers[:] = (73, 61)
    told = (
        r"^max_pairs: 73 \(token, expert\) pairs were selected but only 61 allocated, so results since then are wrong; "
        r"use max_pairs >= 73, or max_pairs=None for the exact mode$"
    )
    with pytest.raises(RuntimeError, match=told):
        overflow.raise_on_overflow(torch.device("cuda"), wait)
    assert waited == [torch.device("cuda", 1)] * wait
    overflow.raise_on_overflow(torch.device("cuda"), wait)
    overflow.raise_on_overflow(None, wait)


def test_the_first_tensor_of_a_call_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own, first of several, or behind one that there is not; a device that is not served is told."""
    x, served = torch.zeros(2), {"cpu"}
    reason = lambda device, dtype: None if device.type in served else f"not on {device}"  # noqa: E731
    monkeypatch.setattr(registry, "unusable_reason", reason)
    call = registry.on_its_device(lambda *given, **options: (given, options))
    for given in ((x, 3), ((x, None), 4), (None, x)):
        assert call(*given, flag=True) == (given, {"flag": True})
    away = x.to("meta")
    for given in ((away, x), ((away, x), x), (None, away, x)):
        with pytest.raises(RuntimeError, match=r"^backend 'triton': not on meta$"):
            call(*given)


@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("true", True), ("YES", True), ("On", True), ("y", True), ("0", False), ("", False), ("no", False)],
)
def test_the_interpreter_is_asked_for_in_the_ways_that_triton_knows(
    value: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    spec = importlib.util.spec_from_file_location("intermoe.kernels.triton.registry_again", registry.__file__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert on == made.INTERPRETED


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [
        (None, "use a machine with an NVIDIA GPU, its driver and a CUDA build of torch"),
        ((7, 5), "use an NVIDIA GPU of the Ampere generation or newer"),
        ((8, 0), ""),
    ],
)
def test_what_to_do_where_it_is_not_served(capability: Any, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(registry, "unusable_reason", registry.unusable_reason.__wrapped__)
    assert registry.status.__wrapped__().remedy == remedy
