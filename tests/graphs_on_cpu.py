"""CUDA graphs on a CPU, for tests: what a capture starts is recorded as operations, and replayed in its memory.

As on a GPU, a replay calls no Python, reads and writes the very tensors of the capture, and a capture that reads a
value fails. It computes nothing: what it would have written holds NaN until a replay. Blocks compute all pairs densely,
and as on a GPU ask the host how many there are unless they have ``max_pairs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from intermoe import backends
from intermoe.ops.route import route_reference
from intermoe.ops.select import choose

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.is_nonzero}


class CaptureError(RuntimeError):
    """As CUDA's: operation not permitted when stream is capturing."""


class Recorder(TorchDispatchMode):
    """The operations of a capture, with their own tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        """what was in memory from outside that an operation has written to"""
        self.own: set[int] = set()
        self.made: list[Tensor] = []
        self.broken = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        by_mask = func.overloadpacket is aten.index and any(t is not None and t.dtype == torch.bool for t in args[1])
        if func.overloadpacket in WAITS or by_mask:
            self.broken = True
            raise CaptureError("operation not permitted when stream is capturing")
        if func._schema.is_mutable:
            for tensor in given:
                if storage(tensor) not in self.own and storage(tensor) not in self.before:
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self.before[storage(tensor)] = whole, whole.clone()
        out = func(*args, **kwargs)
        known = {storage(tensor) for tensor in given}
        for tensor in tensors_of(out):
            if storage(tensor) not in known:
                self.own.add(storage(tensor))
                self.made.append(tensor)
        self.operations.append((func, args, kwargs, out))
        return out

    def end(self) -> None:
        """Nothing was computed: memory from outside is as it was, and that of the graph holds anything."""
        for whole, values in self.before.values():
            whole.copy_(values)
        self.spoil()

    def spoil(self) -> None:
        """Fill the graph's own memory with what no one may read."""
        for tensor in self.made:
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))  # of which autograd does not hear

    def replay(self) -> None:
        """Compute it once more, into the same memory."""
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            self.spoil()
            for func, args, kwargs, out in self.operations:
                given = {storage(tensor) for tensor in tensors_of((args, kwargs))}
                results = tensors_of(out)
                if not func._schema.is_mutable and results and all(storage(tensor) in given for tensor in results):
                    continue  # a view
                again = tensors_of(func(*args, **kwargs))
                for own, new in zip(results, again, strict=True):
                    if storage(own) not in given:
                        own.copy_(new)


def tensors_of(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class GraphsOnCpu:
    """``torch.cuda``'s graphs and streams, and blocks that they can capture; counts captures and replays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures = self.replays = 0
        self.pools: list[object] = []
        self.current = self.outside = SimpleNamespace(name="outside", wait_event=nothing, synchronize=nothing)
        owner = self

        class Graph:
            def replay(self) -> None:
                owner.replays += 1
                self.recorder.replay()

        class graph:
            def __init__(self, graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> None:
                assert pool in owner.pools
                assert capture_error_mode == "thread_local"
                self.graph, self.stream = graph, stream

            def __enter__(self) -> None:
                self.before, owner.current = owner.current, self.stream
                self.graph.recorder = self.recorder = Recorder()
                self.recorder.__enter__()

            def __exit__(self, *error: Any) -> None:
                self.recorder.__exit__(None, None, None)
                self.recorder.end()
                if self.recorder.broken:  # and leaves its stream as the current one, as torch does
                    raise CaptureError("operation failed due to a previous error during capture")
                owner.captures += 1
                owner.current = self.before

        @contextmanager
        def stream(chosen: Any) -> Iterator[None]:
            before, owner.current = owner.current, chosen
            try:
                yield
            finally:
                owner.current = before

        def new_stream(device: torch.device) -> Any:
            return SimpleNamespace(device=device, wait_stream=nothing)

        self.outside.wait_stream = nothing
        fakes = {
            "CUDAGraph": Graph, "graph": graph, "stream": stream, "Stream": new_stream,
            "current_stream": lambda device=None: self.current,
            "Event": lambda: SimpleNamespace(record=nothing),
            "graph_pool_handle": lambda: self.pools.append(object()) or self.pools[-1],
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr("intermoe.graphs.is_gpu", lambda device: True)
        monkeypatch.setattr("intermoe.graphs.waits_for_host", lambda block, device: None)
        monkeypatch.setattr("intermoe.ops.moe._run", run_densely)
        monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")


def nothing(*_: Any) -> None:
    """What streams and events do has no meaning where everything runs in order."""


def run_densely(route: Any, select: Any, experts: Any, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block's sum with every expert on every token, in shapes that depend on no value."""
    tokens, logits = route_reference(*route[:5], normalise=route.normalise)
    chosen = choose(logits.detach(), *select.given(logits))
    if select.max_pairs is None:
        int(chosen.sum())  # asks the host
    else:
        assert select.max_pairs >= chosen.numel()
    up = torch.einsum("sd,efd->sef", tokens.to(experts.w_down.dtype), experts.w_gate_up)
    gate, value = up.chunk(2, dim=-1)
    outs = torch.einsum("sef,edf->sed", torch.nn.functional.silu(gate) * value, experts.w_down)
    gates = (torch.softmax(logits, dim=-1) * chosen).to(outs.dtype)
    return (outs * gates[..., None]).sum(1), chosen.sum(0), logits, torch.where(chosen, 0, -1)
