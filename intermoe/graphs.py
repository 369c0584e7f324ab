"""A network's calls on a GPU as CUDA graphs: what a call starts is captured once, and then replayed without Python.

A denoiser's call starts some hundred kernels, which takes the host longer than a GPU runs them. A graph starts them all
at once, with the shapes, addresses and decisions of the call that was captured; so what it is replayed for must be that
very call with other values. What cannot be captured runs as it is, and the log says why.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from intermoe import backends
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.moe import room_for_all_pairs

logger = logging.getLogger(__name__)

MOST_GRAPHS = 8
"""Graphs of a network that are kept; the one whose use lies longest back goes first."""
WARM_UPS = 3
"""Calls before a capture: in these kernels are compiled, and launches planned."""

Given = tuple[Tensor | None, ...]
"""What a call takes."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))
_one_at_a_time = threading.Lock()
"""Torch captures one graph at a time in a process."""


class Graphs:
    """The captured calls of a network in inference, by the kind of call: the tensors' shapes and types, and options.

    A copy has none of its original's, and threads that share one take turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def of(self, network: nn.Module, **options: Any) -> Callable[..., Tensor]:
        """``network`` with keywords ``options``, a function of tensors or ``None``, for the calls of one sampling.

        On a GPU its first call of a kind is captured, after some calls to warm up, and replayed from then on; each
        result is a tensor of its own. What a replay would not see must not change before ``of`` is called again, which
        looks: other tensors as weights, other settings of a part, another backend or precision. Then all graphs are
        dropped. Weights whose values change are seen. With hooks, gradients, autocast and whatever else a replay would
        pass over, the network is called as it is.

        Blocks make room for every pair of tokens and experts, and their graphs share that memory.
        """
        call = functools.partial(network, **options)
        device = next(network.parameters()).device
        if not is_gpu(device):
            self.forget()
            return call
        if reason := _refusal(network):
            self._tell(reason)
            return call
        seen = (weights_of(network), _settings(network), _surroundings(network))
        with self._lock:
            if self._kept is None or self._kept.seen != seen:
                self._kept = _Kept(seen, device)
            kept = self._kept
        return functools.partial(self._called, kept, call, tuple(sorted(options.items())))

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        with self._lock:
            self._kept = None

    def _called(self, kept: _Kept, call: Callable[..., Tensor], options: tuple[Any, ...], *given: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            self._tell("gradients are enabled")
            return call(*given)
        kind = (options, described(given))
        with kept.lock:
            if kind not in kept.refused:
                try:
                    return kept.replayed(kind, call, given)
                except RuntimeError as error:
                    kept.refused.add(kind)
                    cause = error.__context__ or error
                    self._tell(f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
        return call(*given)

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("a denoiser runs without CUDA graphs: %s", reason)


class _Kept:
    """Graphs of one state of a network, in one pool of memory: they never run at the same time."""

    def __init__(self, seen: tuple[Any, ...], device: torch.device) -> None:
        self.seen, self.device = seen, device
        self.lock = threading.Lock()
        self.graphs: dict[tuple[Any, ...], _Captured] = {}
        self.refused: set[tuple[Any, ...]] = set()
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)
        self.done = torch.cuda.Event()

    def replayed(self, kind: tuple[Any, ...], call: Callable[..., Tensor], given: Given) -> Tensor:
        """The result of ``call`` for ``given``."""
        found = self.graphs.pop(kind, None)
        now = torch.cuda.current_stream(self.device)
        now.wait_event(self.done)  # another stream may not be through with the same memory
        if found is None:
            if len(self.graphs) == MOST_GRAPHS:
                now.synchronize()
                del self.graphs[next(iter(self.graphs))]
            found = _Captured(call, given, self)
        self.graphs[kind] = found
        for own, value in zip(found.inputs, given, strict=True):
            if own is not None and value is not None:
                own.copy_(value)
        found.graph.replay()
        out = found.output.clone()
        self.done.record(now)
        return out


class _Captured:
    """One kind of call: its graph, and the tensors that this reads and writes."""

    def __init__(self, call: Callable[..., Tensor], given: Given, kept: _Kept) -> None:
        self.inputs = [None if value is None else value.clone(memory_format=torch.contiguous_format) for value in given]
        bound = functools.partial(call, *self.inputs)
        with beside(kept.stream), room_for_all_pairs():
            for _ in range(WARM_UPS):
                bound()
            self.graph, self.output = captured(bound, kept.stream, kept.pool)


@contextmanager
def beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Within, ``stream`` is the current one; each waits for what the other has begun before."""
    outside = torch.cuda.current_stream(stream.device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):  # a capture that fails leaves its own stream as the current one
            yield
    finally:
        outside.wait_stream(stream)


def captured(call: Callable[[], Any], stream: torch.cuda.Stream, pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of what ``call`` starts, and its results, which a replay writes.

    Raises ``RuntimeError`` where it waits for the device. Other threads may go on with what they do.
    """
    graph = torch.cuda.CUDAGraph()
    with _one_at_a_time, torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        results = call()
    return graph, results


def is_gpu(device: torch.device) -> bool:
    """Whether there are graphs on a device."""
    return device.type == "cuda"


def described(given: Given) -> tuple[Any, ...]:
    """What tells kinds of calls apart."""
    return tuple([None if t is None else (t.shape, t.dtype, t.device, t.requires_grad) for t in given])


def waits_for_host(block: InterMoEBlock, device: torch.device) -> str | None:
    """Why a call of a block that is, or will be, on a device cannot be captured, ``None`` where it can."""
    name = backends.resolve(device, block.w_down.dtype, block.backend)
    if name == backends.REFERENCE or backends.load(name).allocated_pairs(1, block.num_experts, 1) is None:
        return f"its backend {name!r} asks the host how many pairs are selected"
    return "its experts are spread over processes" if block.is_spread else None


def _refusal(network: nn.Module) -> str | None:
    """Why no call of a network on a GPU is captured, ``None`` where one may be."""
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if torch._C._is_any_autocast_enabled():
        return "autocast is in force"
    if backends.detects_nan():
        return "backends.detect_nan waits for the device"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode watches"
    if hooks_of_all._has_any_global_hook():
        return "hooks on all modules are registered"
    for name, part in network.named_modules():
        if reason := _refusal_of(part):
            return f"{name or type(part).__name__}: {reason}"
    return None


def _refusal_of(part: nn.Module) -> str | None:
    own = vars(part)
    if any(own[hooks] for hooks in _HOOKS):
        return "hooks are registered"
    if "forward" in own:
        return "its forward is replaced"
    if own.get("_compiled_call_impl") is not None or "_orig_mod" in own["_modules"]:
        return "it is compiled"
    if part.training:
        return "it is in training mode"
    if not isinstance(part, InterMoEBlock):
        return None
    if part.max_pairs is not None:
        return "max_pairs is set, which the host looks after"
    return waits_for_host(part, part.w_down.device)


def weights_of(network: nn.Module) -> list[Any]:
    """Which memory a replay reads, and as what."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return [(t.data_ptr(), t.dtype, t.shape, t.stride(), t.device) for t in tensors]


def _settings(network: nn.Module) -> list[Any]:
    """What parts are and are set to."""
    return [
        (type(part), [(name, value) for name, value in vars(part).items() if type(value) in _PLAIN])
        for part in network.modules()
    ]


def _surroundings(network: nn.Module) -> list[Any]:
    """What is decided outside of a network, and kept by a capture."""
    blocks = (part for part in network.modules() if isinstance(part, InterMoEBlock))
    return [
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),
        torch._C._get_deterministic_algorithms(),
        [backends.resolve(block.w_down.device, block.w_down.dtype, block.backend) for block in blocks],
    ]
