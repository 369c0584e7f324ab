"""What is read off a card, and what forgets it."""

import json

import pytest
import torch

pytest.importorskip("triton")
from intermoe.kernels.triton import arguments, configs, overflow, registry
from intermoe.kernels.triton.aot import Resources
from intermoe.ops import exchange


def test_an_architecture_has_both_of_its_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert configs.architecture_of.__wrapped__(torch.device("cuda")) == 86
    assert configs.architecture_of(torch.device("cpu")) == 0


@pytest.mark.parametrize(
    ("dtype", "device", "capability", "reason"),
    [
        *((dtype, "cuda", (8, 0), None) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
        (torch.float32, "cuda", (8, 9), None),
        (torch.float32, "cuda:1", (9, 0), None),
        (torch.float32, "cuda", (7, 5), "needs compute capability 8.0 or newer, got 7.5"),
        (torch.float64, "cuda", (8, 0), "dtype torch.float64 is not supported; use float32, float16 or bfloat16"),
        (torch.float32, "cpu", (8, 0), "needs a CUDA device, got cpu; set TRITON_INTERPRET=1 before starting Python"),
        (torch.float32, "cuda", None, "no CUDA device; use a machine with an NVIDIA GPU"),
        (torch.float32, "cuda", "hip", "needs an NVIDIA device, this PyTorch is built for AMD"),
    ],
)
def test_which_cards_are_served(dtype, device, capability, reason, monkeypatch):
    monkeypatch.setattr(registry, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", "6" if capability == "hip" else None)
    found = registry.unusable_reason.__wrapped__(torch.device(device), dtype)
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), None])
def test_what_is_told_of_this_machine(capability, monkeypatch):
    monkeypatch.setattr(registry, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(registry, "unusable_reason", registry.unusable_reason.__wrapped__)
    found = registry.status.__wrapped__()
    assert (found.name, found.usable, found.devices) == (
        "triton", capability == (8, 0), ("cuda",) if capability == (8, 0) else ()
    )  # fmt: skip
    told = {None: "no CUDA device", (7, 5): "needs compute capability 8.0 or newer, got 7.5", (8, 0): ""}
    assert found.reason == told[capability]
    assert bool(found.remedy) == (capability != (8, 0))


def test_a_tile_that_is_tried_leaves_the_others_of_a_table(tmp_path):
    """And what was in force before is so again afterwards."""
    keys = [configs.Key(86, kernel, "half", "large") for kernel in ("up", "down", "grad_pairs")]
    mine, tried = configs.Tile(64, 32, 32, 4, 2), configs.Tile(32, 32, 16, 2, 1)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(configs.table_json(dict.fromkeys(keys[:2], mine))))

    def found():
        return [configs.tile(key.architecture, key.kernel, key.precision, key.size) for key in keys]

    shipped = [configs.shipped(86)[key] for key in keys]
    try:
        configs.use_table(path)
        assert found() == [mine, mine, shipped[2]]
        with configs.overridden(keys[0], tried):
            assert found() == [tried, mine, shipped[2]]
            with configs.overridden(keys[2], tried):
                assert found() == [tried, mine, tried]
        assert found() == [mine, mine, shipped[2]]
    finally:
        configs.use_table(None)
    assert found() == shipped


def test_plans_of_another_table_are_forgotten(monkeypatch):
    """A plan holds its tile: one that is kept would go on with that of before."""
    told = []
    monkeypatch.setattr(configs, "forget", lambda: told.append(dict(configs._user)))
    key, tile = configs.Key(86, "up", "half", "large"), configs.Tile(64, 32, 32, 4, 2)
    with configs.overridden(key, tile):
        assert told == [{key: tile}]
    assert told == [{key: tile}, {}]


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (16, 0, 64, 16),  # as many as there may be
        (128, 0, 128, 4),  # 65,536 registers, 128 for each of 128 threads
        (33, 0, 256, 6),  # 33 registers are 1280 a warp: 40 a thread
        (32, 49_152, 128, 2),  # a kilobyte of each block is the system's
        (16, 0, 1024, 2),
    ],
)
def test_as_many_blocks_fit_as_the_scarcest_allows(registers, shared, threads, blocks):
    assert Resources(registers, 0, shared, threads).blocks_per_multiprocessor(102_400, 2048) == blocks


def test_a_size_class_ends_with_its_number():
    assert [configs.size_class(8 * rows, 8) for rows in (48, 49, 192, 193)] == ["small", "medium", "medium", "large"]


@pytest.mark.parametrize("which", ["max_pairs of a call", "max_pairs to a rank"])
def test_an_overflow_is_told_where_its_device_is_asked_for(which, monkeypatch):
    """Once, with its own numbers; of no device in particular, whichever overflowed."""
    devices = [torch.device("cpu", 0), torch.device("cpu", 1)]
    made = {"max_pairs of a call": overflow.OverflowFlag, "max_pairs to a rank": exchange._Limit}[which]
    flags = {device: made(torch.device("cpu")) for device in devices}
    if which == "max_pairs of a call":
        monkeypatch.setattr(overflow, "_flags", flags)
        ask, numbers = overflow.raise_on_overflow, [flag.numbers for flag in flags.values()]
    else:
        monkeypatch.setattr(exchange, "_limits", flags)
        ask, numbers = (lambda device: exchange.raise_on_overflow(device, wait=True)), [f.host for f in flags.values()]
    numbers[1][:] = torch.tensor([73, 61])
    ask(devices[0])
    with pytest.raises(RuntimeError, match=r"73.*61|61.*73"):
        ask(devices[1])
    ask(devices[1])
    ask(None)
    numbers[0][:] = torch.tensor([9, 5])
    with pytest.raises(RuntimeError, match=r"9.*5|5.*9"):
        ask(None)
    ask(None)


@pytest.mark.parametrize(
    ("rows", "tokens", "fits"),
    [(1, 6, True), (3, 6, True), (6, 6, True), (4, 6, False), (7, 6, False), (0, 6, False), (0, 0, True), (5, 0, True)],
)
def test_rows_stand_for_equally_many_tokens(rows, tokens, fits, monkeypatch):
    """None would leave every token without one, of which the kernels read; without tokens nothing is read."""
    monkeypatch.setattr(arguments, "INTERPRETED", False)
    given = torch.zeros(rows, 2)
    for check in (
        lambda: arguments.expect_divisor("rows", rows, tokens),
        lambda: arguments.expect_rows("rows", given, tokens, 2),
    ):
        if fits:
            check()
            continue
        with pytest.raises(ValueError, match=rf"^rows: expected a number of rows .* of tokens {tokens}, got {rows}$"):
            check()
    arguments.expect_rows("rows", None, tokens, 2)
