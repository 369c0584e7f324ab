"""The model of experts over processes, by hand: bytes, seconds and the table of the documentation."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.benchmarks import exchange
from intermoe.benchmarks.exchange import LATENCY, Load
from intermoe.nn import moe

SMALL = Load(tokens=6, dim=5, width=7, experts=3, capacity=1.5, item=2)
ROWS = 4 * 9 * 5 * 2  # of 9 pairs, there and back, forward and backward
WEIGHTS = 3 * (2 * 7 * 5 + 5 * 7) * 2  # gate, up and down of three experts


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_stays_is_not_sent(ranks: int) -> None:
    others = (ranks - 1) / ranks
    assert SMALL.weight_bytes == WEIGHTS
    assert exchange.exchanged_bytes(SMALL, ranks) == pytest.approx(ROWS * others)
    assert exchange.reduced_bytes(SMALL, ranks) == pytest.approx(2 * WEIGHTS * others)


def test_seconds_are_bytes_and_collectives() -> None:
    """Four exchanges and one of counts; a reduce-scatter and an all-gather."""
    assert exchange.exchange_seconds(SMALL, 4, 90.0) == pytest.approx(ROWS * 3 / 4 / 90 + 5 * LATENCY)
    assert exchange.reduce_seconds(SMALL, 4, 90.0) == pytest.approx(2 * WEIGHTS * 3 / 4 / 90 + 2 * LATENCY)


def test_a_rank_keeps_four_numbers_of_each_weight() -> None:
    """Weight, gradient and two moments in float32: 8 experts of 3 x 768 x 1024 are 288 MiB, an eighth of it 36."""
    assert 8 * 3 * 768 * 1024 * 4 * 4 == 288 * 2**20
    cells = [line.split(" | ")[:4] for line in exchange.model_table().splitlines()[2:]]
    places = [(int(ranks[2:]), float(rate), int(experts), int(tokens)) for ranks, rate, experts, tokens in cells]
    every = [(8, 300.0, 8), (8, 300.0, 64), (8, 300.0, 512), (64, 40.0, 64), (64, 40.0, 512), (512, 40.0, 512)]
    assert places == [(*place, tokens) for place in every for tokens in (2400, 9600, 38400)]
    row = next(line for line in exchange.model_table().splitlines() if line.startswith("| 8 | 300 | 8 | 9600 |"))
    assert row.endswith("| 36 of 288 MiB |")
    seconds = 4 * 9600 * 768 * 2 * 7 / 8 / 300e9 + 5 * LATENCY
    assert f"| {1e3 * seconds:.2f} ms |" in row


def test_the_documentation_has_rows_of_the_table_alone() -> None:
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    head, _, *rows = exchange.model_table().splitlines()
    shown = [line for line in text.split(head)[1].splitlines()[2:] if line.startswith("| ")]
    assert shown
    assert set(shown) <= set(rows)


def test_the_first_of_the_repeats_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """All begin together; the median of the others is told."""
    took = [100.0, 3.0, 1.0, 11.0]
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in took)
    order: list[str] = []
    monkeypatch.setattr(exchange.dist, "barrier", lambda: order.append("barrier"))
    monkeypatch.setattr(exchange.time, "perf_counter", lambda: next(clock))
    assert exchange.measure(lambda: order.append("call"), repeats=3) == 3.0
    assert order == ["barrier", "call"] * 4


def test_the_command_starts_as_many_processes_as_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They meet in one place; numbers are float32's. With ``--model`` none is started."""
    asked: list[Any] = []

    def start(function: Any, given: tuple[Any, ...], processes: int, start_method: str) -> None:
        ranks, meeting, load = given
        assert Path(meeting).parent.is_dir()
        asked.append((function, ranks, load, processes, start_method))

    monkeypatch.setattr(exchange, "start_processes", start)
    loads = {
        "--ranks 3 --tokens 24 --dim 16 --width 8 --experts 6": (3, Load(24, 16, 8, 6, 1.0, 4)),
        "": (2, Load(600, 256, 512, 8, 1.0, 4)),
    }
    for given, (ranks, load) in loads.items():
        monkeypatch.setattr(sys, "argv", ["exchange", *given.split()])
        exchange.main()
        assert asked.pop() == (exchange._rank, ranks, load, ranks, "fork")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["exchange", "--model", "--ranks", "3"])
    exchange.main()
    assert capsys.readouterr().out == exchange.model_table() + "\n"
    assert not asked


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_process_tells(rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three with 20 tokens: an exchange of rows takes 1 ms, the whole block 40 ms, the spread one 50 ms."""
    load, ranks = Load(tokens=20, dim=16, width=8, experts=6, item=4), 3
    order: list[Any] = []
    blocks: list[moe.InterMoEBlock] = []

    class Block(moe.InterMoEBlock):
        def __init__(self, **sizes: Any) -> None:
            super().__init__(**sizes)
            assert sizes == {"dim": 16, "num_experts": 6, "expert_dim": 8, "cond_dim": None}
            blocks.append(self)

        def distribute(self, mesh: Any) -> None:
            order.append(("spread", mesh))

        def forward(self, hidden: torch.Tensor, *given: Any) -> Any:
            seeded = torch.Generator().manual_seed(rank)
            assert torch.equal(hidden, torch.randn(1, 20, 16, generator=seeded))
            order.append(blocks.index(self))
            return super().forward(hidden, *given)

    def note(name: str) -> Any:
        return lambda *given, **options: order.append((name, *given, options))

    def reduced(gradient: torch.Tensor) -> None:
        names = [name for name, weight in blocks[0].named_parameters() if weight.grad is gradient]
        order.append(("reduced", *names))

    def exchanged(into: torch.Tensor, rows: torch.Tensor) -> None:
        order.append(("exchanged", tuple(into.shape), tuple(rows.shape), rows.dtype))

    seconds = iter([1e-3, 40e-3, 50e-3])
    monkeypatch.setattr(moe, "InterMoEBlock", Block)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: order.append(("threads", count)))
    monkeypatch.setattr(torch.distributed.device_mesh, "init_device_mesh", lambda *given: given)
    monkeypatch.setattr(exchange, "measure", lambda call: (call(), next(seconds))[1])
    for name, fake in (
        ("init_process_group", note("meets")), ("barrier", note("barrier")), ("destroy_process_group", note("leaves")),
        ("all_reduce", reduced), ("all_to_all_single", exchanged),
    ):  # fmt: skip
        monkeypatch.setattr(exchange.dist, name, fake)
    torch.manual_seed(9)  # what each draws is the same, whatever was drawn before
    exchange._rank(rank, ranks, "/x/ranks", load)
    assert order == [
        ("threads", 1),
        ("meets", "gloo", {"init_method": "file:///x/ranks", "rank": rank, "world_size": 3}),
        ("spread", ("cpu", (3,))),
        *(1, 0),  # both compute the same
        ("exchanged", (18, 16), (18, 16), torch.float32),  # as many rows for each
        *(0, ("reduced", "w_gate_up"), ("reduced", "w_down"), 1),
        *(("barrier", {}), ("leaves", {})),
    ]
    torch.manual_seed(0)
    drawn = Block(dim=16, num_experts=6, expert_dim=8, cond_dim=None)
    for name, weight in drawn.named_parameters():
        assert all(torch.equal(block.get_parameter(name), weight) for block in blocks), name
    drawn(torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(rank)))
    pairs = int(drawn.expert_counts.sum())
    sent, rate = 4 * pairs * 16 * 4 * 2 / 3, 18 * 16 * 4 * 2 / 3 / 1e-3
    weights = 6 * 3 * 16 * 8 * 4
    lines = [
        f"3 processes, 20 tokens each, {pairs} pairs, {load}",
        f"bytes of a rank: exchange {sent:,.0f}, reduce {2 * weights * 2 / 3:,.0f}",
        f"one exchange 1.0 ms, {rate / 1e9:.2f} GB/s",
        "forward and backward: whole with all-reduce 40.0 ms, spread 50.0 ms",
        f"model: the exchanges take {1e3 * sent / rate:.1f} ms of the spread block's time",
    ]
    assert capsys.readouterr().out.splitlines() == ([] if rank else lines)
