"""The order in which graphs, streams and events are told what to do, and what a graph hangs on: by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import graphs
from intermoe.graphs import Graphs

DEVICE = torch.device("cpu")


class Stream:
    """Notes what it is told."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told, self.device = name, told, DEVICE

    def wait_event(self, event: Any) -> None:
        self.told.append(f"{self.name} waits for {event.name}")

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.told.append(f"the host waits for {self.name}")


class Written(Tensor):
    """Notes when it is written."""

    told: list[str]

    def copy_(self, other: Tensor, *options: Any) -> Any:
        self.told.append("input written")
        return super().copy_(other)

    def clone(self, **options: Any) -> Any:
        self.told.append("result copied")
        return torch.Tensor.clone(self.as_subclass(Tensor), **options)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams, events and graphs were told, in order; the current stream is called "now"."""
    log: list[str] = []
    current = [Stream("now", log)]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def event() -> Any:
        return SimpleNamespace(name="the last replay", record=lambda stream: log.append(f"recorded on {stream.name}"))

    fakes = {
        "current_stream": lambda device=None: current[-1], "stream": on, "Event": event,
        "Stream": lambda device: Stream("aside", log), "graph_pool_handle": lambda: "pool",
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return log


@pytest.fixture
def kept(told: list[str], monkeypatch: pytest.MonkeyPatch) -> graphs._Kept:
    """Graphs that write nothing; each capture and replay is noted."""

    class Captured:
        def __init__(self, call: Callable[..., Tensor], given: graphs.Given, kept: graphs._Kept) -> None:
            told.append("captured")
            self.inputs = [None if each is None else torch.zeros_like(each).as_subclass(Written) for each in given]
            self.output = torch.ones(2).as_subclass(Written)
            for each in (*self.inputs, self.output):
                if each is not None:
                    each.told = told
            self.graph = SimpleNamespace(replay=lambda: told.append("replayed"))

    monkeypatch.setattr(graphs, "_Captured", Captured)
    return graphs._Kept((), DEVICE)


def test_a_replay_waits_for_the_last_one_and_the_next_one_for_it(kept: graphs._Kept, told: list[str]) -> None:
    """Graphs share memory, and may be called from streams that know nothing of each other."""
    x = torch.arange(3.0)
    result = kept.replayed(("a",), lambda: x, (x, None))
    once = ["input written", "replayed", "result copied", "recorded on now"]
    assert told == ["now waits for the last replay", "captured", *once]
    assert result.tolist() == [1.0, 1.0]
    assert kept.graphs[("a",)].inputs[0].tolist() == [0.0, 1.0, 2.0]
    told.clear()
    kept.replayed(("a",), lambda: x, (x + 1, None))
    assert told == ["now waits for the last replay", *once]
    assert kept.graphs[("a",)].inputs[0].tolist() == [1.0, 2.0, 3.0]


def test_a_graph_that_goes_has_run_to_its_end(kept: graphs._Kept, told: list[str]) -> None:
    """Eight are kept; the memory of one that runs may not be another's."""
    x = torch.zeros(1)
    for number in range(8):
        kept.replayed((number,), lambda: x, (x,))
    assert "the host waits for now" not in told
    assert list(kept.graphs) == [(number,) for number in range(8)]
    told.clear()
    kept.replayed((0,), lambda: x, (x,))
    kept.replayed((8,), lambda: x, (x,))
    assert list(kept.graphs) == [*((number,) for number in range(2, 8)), (0,), (8,)]
    assert told.index("the host waits for now") < told.index("captured")
    assert told.count("the host waits for now") == 1


def test_a_stream_beside_waits_before_and_is_waited_for(told: list[str]) -> None:
    """Also where what runs on it fails."""
    aside = Stream("aside", told)
    with graphs.beside(aside):  # type: ignore[arg-type]
        told.append(f"runs on {torch.cuda.current_stream(DEVICE).name}")
    assert told == ["aside waits for now", "runs on aside", "now waits for aside"]
    told.clear()

    def failing() -> None:
        with graphs.beside(aside):  # type: ignore[arg-type]
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert told == ["aside waits for now", "now waits for aside"]


def test_a_capture_comes_after_three_calls_with_inputs_of_its_own(told: list[str], monkeypatch: Any) -> None:
    """In which kernels are compiled and plans are made, with room for all pairs; dense, however they were given."""
    from intermoe.ops.moe import _room

    seen: list[Tensor] = []

    def call(x: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        assert _room.for_all_pairs
        told.append("called")
        seen.append(x)
        return x

    def captured(bound: Callable[[], Tensor], stream: Stream, pool: Any) -> Any:
        told.append(f"captured on {stream.name} from {pool}")
        return "graph", bound()

    monkeypatch.setattr(graphs, "captured", captured)
    kept = graphs._Kept((), DEVICE)
    given = torch.arange(6.0).view(2, 3).T
    made = graphs._Captured(call, (given, None), kept)
    assert told == [
        "aside waits for now", *["called"] * 3, "captured on aside from pool", "called", "now waits for aside",
    ]  # fmt: skip
    assert made.graph == "graph"
    assert made.output is made.inputs[0]
    assert all(each is made.inputs[0] for each in seen)
    assert made.inputs[0].is_contiguous()
    assert torch.equal(made.inputs[0], given)
    assert made.inputs[0].data_ptr() != given.data_ptr()


def test_a_reason_is_told_once_on_one_line_and_not_at_any_length(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[Any, ...]] = []
    inner = ValueError("what\n   failed " + "x" * 400)

    def replayed(*given: Any) -> Tensor:
        calls.append(given)
        try:
            raise inner
        except ValueError:
            raise RuntimeError("the capture ended")  # noqa: B904  (as torch's does: in the course of another)

    kept: Any = SimpleNamespace(lock=graphs.threading.Lock(), refused=set(), replayed=replayed)
    made = Graphs()
    with torch.no_grad(), caplog.at_level(logging.WARNING, graphs.__name__):
        for x in (torch.zeros(2), torch.zeros(2), torch.zeros(3)):
            assert made._called(kept, lambda x: x + 1, (), x).tolist() == [1.0] * len(x)
    assert len(calls) == 2, "a kind of call that cannot be captured is not tried again"
    reason = "ValueError: what failed " + "x" * 288
    assert caplog.messages == [f"a denoiser runs without CUDA graphs: {reason}"]


def nothing(*_: Any) -> None:
    """A hook."""


HOOKED: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda part: part.register_forward_hook(nothing),
    "before forward": lambda part: part.register_forward_pre_hook(nothing),
    "backward": lambda part: part.register_full_backward_hook(nothing),
    "before backward": lambda part: part.register_full_backward_pre_hook(nothing),
}


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_of_each_kind_keep_a_part_from_being_captured(name: str) -> None:
    part = nn.Linear(2, 2).eval()
    assert graphs._refusal_of(part) is None
    handle = HOOKED[name](part)
    assert graphs._refusal_of(part) == "hooks are registered"
    handle.remove()
    assert graphs._refusal_of(part) is None


def test_what_wraps_a_compiled_part_is_not_captured() -> None:
    """As ``torch.compile`` of a module does."""
    wrapper = nn.Module()
    assert graphs._refusal_of(wrapper.eval()) is None
    wrapper._orig_mod = nn.Linear(2, 2)
    assert graphs._refusal_of(wrapper.eval()) == "it is compiled"


def test_what_a_graph_hangs_on_is_looked_at() -> None:
    """Memory, type, shape and strides of every parameter and buffer; settings of parts; what is set around them."""
    part = nn.BatchNorm1d(4)
    part.square = nn.Parameter(torch.randn(3, 3))

    def seen() -> tuple[Any, ...]:
        return graphs.weights_of(part), graphs._settings(part), graphs._surroundings(part)

    before = seen()
    part.square.data = part.square.data.T  # the same memory, read in another order
    turned = seen()
    assert [one == other for one, other in zip(before, turned, strict=True)] == [False, True, True]
    part.square.data = part.square.data.T
    assert seen() == before
    part.running_mean.data = part.running_mean.data.clone()
    assert seen()[0] != before[0]
    before = seen()
    part.eps = 0.5
    assert [one == other for one, other in zip(before, seen(), strict=True)] == [True, False, True]
    before = seen()
    torch.use_deterministic_algorithms(True)
    try:
        assert [one == other for one, other in zip(before, seen(), strict=True)] == [True, True, False]
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen() == before
    with torch.inference_mode():
        assert seen()[2] != before[2]


def test_calls_are_of_a_kind_by_all_that_a_graph_was_made_for() -> None:
    x = torch.zeros(2, 3)
    kinds = [(x,), (None,), (x, None), (x.view(3, 2),), (x.double(),), (x.to("meta"),), (x.clone().requires_grad_(),)]
    found = [graphs.described(each) for each in kinds]
    assert len(set(found)) == len(kinds)
    assert graphs.described((x + 1,)) == found[0]
