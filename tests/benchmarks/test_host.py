"""The host's benchmark: what the stand-in for a driver records, and the rows of the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.harness import host, standin
from intermoe.kernels.triton.registry import INTERPRETED
from intermoe.ops.moe import Experts, Route, moe

FORWARD = ["route_kernel", "count_kernel", "scatter_kernel", "up_kernel", "grouped_product_kernel", "combine_kernel"]


@pytest.fixture(autouse=True)
def _compiled_mode() -> None:
    if INTERPRETED:
        pytest.skip("stands in for a driver, which the interpreter has no use for")


def test_the_stand_in_records_every_launch_of_the_public_operation() -> None:
    with standin.stand_in(pairs=9600) as driver:
        calls = host.calls("triton", host.TRAINING, torch.bfloat16)
        calls["inference"]()
        assert [launch.name for launch in driver.launches] == FORWARD
        up = driver.launches[3].arguments
        assert (up["DIM"], up["NUM_EXPERTS"], up["SAVE_H"]) == (64, 8, False)
        assert 9600 <= len(up["token_idx_ptr"]) <= 9600 * 33 / 32, "the exact mode has room for the pairs that it read"
        calls["forward + backward"]()
        assert [launch.name for launch in driver.launches[6:12]] == FORWARD
        assert driver.launches[9].arguments["SAVE_H"]
    assert not backends.available()["triton"].usable or torch.cuda.is_available()


def test_rows_have_times_of_both_ways_and_launches() -> None:
    rows = host.measure(repeats=1, count=1)
    assert [row["launches"] for row in rows if "launches" in row] == 3 * [{"inference": 6, "forward + backward": 16}]
    for row in rows:
        assert all(time > 0 for time in row["microseconds"].values())
        assert set(row["over the backend"]) == {"inference", "forward + backward"}


def test_a_row_tells_the_time_of_one_operation_in_it() -> None:
    times = {"inference": 3.0, "forward + backward": 5.0, host.IN_A_ROW: 16.0}
    row = host._row("", times | {"inference, backend": 1.0, "forward + backward, backend": 2.0})
    assert row["microseconds"][host.IN_A_ROW] == 2.0
    assert row["over the backend"] == {"inference": 2.0, "forward + backward": 3.0}


def test_operations_in_a_row_get_gradients_of_their_own() -> None:
    with standin.stand_in(pairs=300) as driver:
        calls = host.calls("triton", host.PROMPT, torch.bfloat16)
        assert len(calls[host.IN_A_ROW]()) == 1 + 6 * host.ROW
        assert len(driver.launches) == 16 * host.ROW


def test_the_least_of_the_repeats_counts() -> None:
    ran: list[str] = []
    calls = {name: lambda name=name: ran.append(name) for name in ("a", "b")}
    found = host.least(calls, repeats=2, count=3)
    assert set(found) == {"a", "b"}
    assert ran[2 * host.WARM_UPS :] == 3 * ["a"] + 6 * ["b"] + 3 * ["a"], "in turns"


def test_microseconds_of_one_call_are_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls in 8 ms of its own time; of several repeats the least counts."""
    clock = iter([1_000_000, 9_000_000])
    monkeypatch.setattr(host.time, "process_time_ns", lambda: next(clock))
    ran: list[int] = []
    assert host._microseconds(lambda: ran.append(1), 4) == 2000.0
    assert len(ran) == 4
    monkeypatch.setattr(host, "take_turns", lambda clocks, budget: {name: [3.0, 1.0, 2.0] for name in clocks})
    assert host.least({"a": lambda: None}) == {"a": 1.0}


def test_every_call_computes_what_it_is_named_after(
    monkeypatch: pytest.MonkeyPatch, relative_error: Callable[..., float]
) -> None:
    """The public operation and the backend alone, beside the reference; what does nothing gives zeros."""
    if not backends.available()["native"].usable:
        pytest.skip("native backend: not usable")
    given = host._arguments((8, 16, 4, 12, 2, None), torch.float32)
    route, select, experts = given
    shapes = [tuple(t.shape) for t in (*route[:5], select.selection_bias, *experts[:2])]
    assert shapes == [(8, 16), (4, 16), (2, 4), (2, 16), (2, 16), (4,), (4, 24, 16), (4, 16, 12)]
    assert host._arguments((8, 16, 4, 12, 2, 7), torch.float32)[1].max_pairs == 7
    stored = host._arguments(host.TINY, torch.bfloat16)
    single = {t.dtype for t in (*stored[0][1:5], stored[1].selection_bias)}
    assert ({t.dtype for t in (stored[0].hidden, *stored[2][:2])}, single) == ({torch.bfloat16}, {torch.float32})

    monkeypatch.setattr(host, "_arguments", lambda shape, dtype: given)
    monkeypatch.setattr(host, "ROW", 3)  # in more a rounding decides which pairs there are
    torch.manual_seed(3)
    calls = host.calls("native", (), torch.float32)
    torch.manual_seed(3)
    grad = torch.randn_like(route.hidden)
    leaves = [t.clone().requires_grad_() for t in (*route[:5], *experts[:2])]
    out = moe(Route(*leaves[:5]), select, Experts(*leaves[5:]), backend="reference").out
    expected = torch.autograd.grad(out, leaves, grad)
    for name in ("inference", "inference, backend"):
        assert relative_error(calls[name]()[0], out) < 1e-5, name
    for name in ("forward + backward", "forward + backward, backend"):
        found = calls[name]()
        assert len(found) == 7
        assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5, name
    nothing = calls["forward + backward, torch alone"]()
    assert [t.shape for t in nothing] == [t.shape for t in leaves]
    assert not any(t.any() for t in nothing)

    hidden, rows = leaves[0], [[t.clone().requires_grad_() for t in leaves[1:]] for _ in range(host.ROW)]
    for row in rows:
        hidden = moe(Route(hidden, *row[:4]), select, Experts(*row[4:]), backend="reference").out
    expected = torch.autograd.grad(hidden, [leaves[0], *(t for row in rows for t in row)], grad)
    found = calls[host.IN_A_ROW]()
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-4


def test_both_are_the_backend_and_what_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    package = SimpleNamespace(
        moe_forward=lambda *_: (done.append("forward"), None, "saved"),
        moe_backward=lambda grad, logits, route, experts, saved, *_: done.append(f"backward of what was {saved}"),
    )
    monkeypatch.setattr(host.backends, "load", lambda name: {"native": package}[name])
    monkeypatch.setattr(host, "_nothing", lambda *_: lambda: done.append("nothing"))
    host.calls("native", host.TINY, torch.float32)["forward + backward, backend and torch alone"]()
    assert done == ["forward", "backward of what was saved", "nothing"]


@pytest.mark.parametrize("usable", [True, False])
@pytest.mark.parametrize("triton", [True, False])
def test_every_case_has_its_own_row(usable: bool, triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, types and pairs of each; a launch counts once a call, and none is recorded while it is timed."""
    drivers: list[Any] = []

    @contextmanager
    def stand_in(pairs: int) -> Iterator[Any]:
        drivers.append(SimpleNamespace(pairs=pairs, launches=["earlier"], recording=True))
        yield drivers[-1]

    def calls(backend: str, shape: tuple[Any, ...], dtype: torch.dtype) -> Any:
        def launch(count: int) -> Callable[[], None]:
            return lambda: drivers[-1].launches.extend(count * ["one"])

        return {"inference": launch(3), "forward + backward": launch(5), "of": (backend, shape, dtype)}

    def least(cases: Any, repeats: int, count: int) -> dict[str, Any]:
        assert (repeats, count) == (7, 9)
        assert not drivers or not drivers[-1].recording
        return {"of": cases["of"]}

    monkeypatch.setattr(host.backends, "available", lambda: {"native": SimpleNamespace(usable=usable)})
    monkeypatch.setitem(host.backends._loaded, "triton", standin.package if triton else ImportError())
    monkeypatch.setattr(host.standin, "stand_in", stand_in)
    for name, fake in (("calls", calls), ("least", least), ("_row", lambda name, times: {"case": name, **times})):
        monkeypatch.setattr(host, name, fake)
    half, launches = torch.bfloat16, {"launches": {"inference": 3, "forward + backward": 5}}
    tiny = {"case": "native, tiny call on this CPU", "of": ("native", (8, 16, 4, 16, 1, None), torch.float32)}
    sizes = {
        "triton, S=300": (300, 64, 8, 64, 4, None),
        "triton, S=9600": (9600, 64, 8, 64, 64, None),
        "triton, S=9600, static": (9600, 64, 8, 64, 64, 9600),
    }
    rows = [{"case": name, "of": ("triton", shape, half), **launches} for name, shape in sizes.items()]
    assert host.measure(7, 9) == [tiny] * usable + rows * triton
    assert [driver.pairs for driver in drivers] == [300, 9600, 9600] * triton


@pytest.mark.parametrize("triton", [True, False])
def test_the_command_prints_and_writes_what_it_measured(
    triton: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one thread; memory is of the published model's sizes."""
    config, threads = models.PUBLISHED, []
    monkeypatch.setitem(host.backends._loaded, "triton", standin.package if triton else ImportError())
    monkeypatch.setattr(host, "measure", lambda: [{"case": "a"}])
    monkeypatch.setattr(host, "memory", list)
    monkeypatch.setattr(host, "machine", lambda device: SimpleNamespace(label=f"a {device}"))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    host.main(["--out", str(tmp_path / "host.json")])
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "host.json").read_text())
    shape = [9600, config.dim, config.num_experts, config.expert_dim, 64]
    memory = {"memory": {"S=9600": [*shape, None], "S=9600, static": [*shape, 9600]}}
    assert told == {
        "machine": "a cpu",
        "torch": torch.__version__,
        "rows": [{"case": "a"}],
        **(memory if triton else {}),
    }
    assert threads == [1]
    host.main([])
    assert list(tmp_path.iterdir()) == [tmp_path / "host.json"]
