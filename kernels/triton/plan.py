"""A call's launches, made once and then repeated: a later call only fills in pointers.

The Python code of the steps is what defines a call. Its first run for a set of shapes, dtypes, devices, alignments and
options is recorded: which kernels it started on which grids, and of every argument whether it was an input, a result,
memory in between, or a number. From then on the same launches are made of that record. Results are allocated one by
one, as they live on their own; all memory in between is one allocation, in which what is written later takes the place
of what is read no more: launches of a stream run one after the other.

A run that did anything else than allocate and launch (a copy into dense memory, a cast, a read) is not repeated so:
such calls take the Python code each time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..contract import described
from .registry import INTERPRETED

MOST_PLANS = 1024
"""More are made anew: pools of many lengths must not fill the memory."""

ALIGNMENT = 256
"""Of memory in between, as the allocator's own."""

Results = tuple[Any, ...]
"""Tensors, or ``None``."""

Step = Callable[..., Results]

_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default}
_VIEWS = {_aten.slice.Tensor, _aten.view.default, _aten.detach.default, _aten.alias.default}
_plans: dict[tuple[Any, ...], Plan | None] = {}
_active = threading.local()


class Recorder(TorchDispatchMode):
    """What a run allocates and launches; ``others`` are operations that no plan repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.buffers: list[Tensor] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.buffers.append(out)
        elif func not in _VIEWS:
            self.others.append(str(func))
        return out


def record(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Note a launch, where a run is recorded in this thread."""
    recorder: Recorder | None = getattr(_active, "recorder", None)
    if recorder is not None:
        recorder.launches.append((start, arguments))


def forget() -> None:
    """Drop all plans: what they were made of has changed."""
    _plans.clear()


def planned(function: Step) -> Step:
    """A function of tensors, or ``None``, and keywords that decide what is launched, as a plan from its second call on.

    It returns tensors as it allocated them, inputs, or ``None``; where it views parts of either no plan is made. Calls
    of one ``kind`` have tensors alike, which are not looked at then.
    """

    @functools.wraps(function)
    def call(*tensors: Tensor | None, kind: Hashable = None, **options: Any) -> Results:
        if INTERPRETED or getattr(_active, "recorder", None) is not None:
            return function(*tensors, **options)
        alike = described(tensors) if kind is None else kind
        key = (function, torch.get_float32_matmul_precision(), alike, *options.values())
        try:
            plan = _plans[key]
        except KeyError:
            results, _plans[key] = _recorded(function, tensors, options)
            return results
        return function(*tensors, **options) if plan is None else plan.run(tensors)

    return call


def _recorded(
    function: Step, tensors: tuple[Tensor | None, ...], options: dict[str, Any]
) -> tuple[Results, Plan | None]:
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _active.recorder = recorder = Recorder()
    try:
        with recorder:
            results = function(*tensors, **options)
    finally:
        _active.recorder = None
    return results, Plan(tensors, results, recorder) if _can_repeat(tensors, results, recorder) else None


def _can_repeat(inputs: tuple[Tensor | None, ...], results: Results, recorder: Recorder) -> bool:
    """Whether all pointers of a run can be told from those of its inputs, results and memory in between."""
    given = {id(t) for t in inputs}
    foreign = {_storage(t) for t in inputs if t is not None and t.numel()}
    launched = (argument for _, arguments in recorder.launches for argument in arguments)
    for tensor in (argument for argument in launched if isinstance(argument, Tensor) and id(argument) not in given):
        if _storage(tensor) in foreign or tensor.storage_offset():
            return False
    for result in results:
        if result is not None and id(result) not in given:
            whole = result.is_contiguous() and result.nbytes == result.untyped_storage().nbytes()
            if _storage(result) in foreign or not whole:
                return False
    return not recorder.others


class Between(NamedTuple):
    """Memory in between: its bytes, and the numbers of the first and last launch that use it."""

    size: int
    first: int
    last: int


def _uses(recorder: Recorder) -> dict[int, tuple[int, int]]:
    """The first and last launch that use each storage."""
    found: dict[int, tuple[int, int]] = {}
    for number, (_, arguments) in enumerate(recorder.launches):
        for tensor in arguments:
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = _storage(tensor)
                found[storage] = found.get(storage, (number, number))[0], number
    return found


def placed(between: list[Between]) -> tuple[list[int], int]:
    """Offsets, and the bytes of all: the largest first, each where nothing lies that is in use in its time."""
    offsets = [0] * len(between)
    lying: list[tuple[int, int, Between]] = []
    for number in sorted(range(len(between)), key=lambda n: -between[n].size):
        one, start = between[number], 0
        for low, high, other in sorted(lying):
            if one.first <= other.last and other.first <= one.last:
                if start + one.size <= low:
                    break
                start = max(start, high)
        offsets[number] = start
        lying.append((start, start + -(-one.size // ALIGNMENT) * ALIGNMENT, one))
    return offsets, max((high for _, high, _ in lying), default=0)


class Plan:
    """The launches of one kind of call."""

    def __init__(self, inputs: tuple[Tensor | None, ...], results: Results, recorder: Recorder) -> None:
        self.results: list[int | Tensor | None] = []
        """numbers of inputs, or what to allocate"""
        places = {id(t): i for i, t in enumerate(inputs) if t is not None}
        starts: dict[int, int] = {}
        made = len(inputs)
        for result in results:
            if result is None or id(result) in places:
                self.results.append(None if result is None else places[id(result)])
                continue
            self.results.append(_pattern(result))
            starts[_storage(result)] = made
            made += 1
        between: list[Between] = []
        uses = _uses(recorder)
        for buffer in recorder.buffers:
            storage = _storage(buffer)
            if storage in uses and storage not in starts:
                starts[storage] = made + len(between)
                between.append(Between(buffer.untyped_storage().nbytes(), *uses[storage]))
        self.offsets, self.arena = placed(between)
        device = next(t.device for t in inputs if t is not None)
        self.memory = _pattern(torch.empty(self.arena, dtype=torch.uint8, device=device))
        first_number = made + len(self.offsets)
        self.numbers: list[Any] = []
        self.steps = []
        for start, arguments in recorder.launches:
            taken = []
            for argument in arguments:
                place = places.get(id(argument))
                if place is None and isinstance(argument, Tensor):
                    place = starts.get(_storage(argument))
                if place is None:  # a number, ``None``, or a tensor that lives longer than any call
                    place = first_number + len(self.numbers)
                    self.numbers.append(argument)
                taken.append(place)
            self.steps.append((start, itemgetter(*taken)))

    def run(self, inputs: tuple[Tensor | None, ...]) -> Results:
        """Launch everything for other inputs of the same kind."""
        results: list[Any] = []
        values: list[Any] = [None if t is None else t.data_ptr() for t in inputs]
        for result in self.results:
            if result is None or isinstance(result, int):
                results.append(None if result is None else inputs[result])
            else:
                results.append(made := torch.empty_like(result))
                values.append(made.data_ptr())
        if self.arena:
            arena = torch.empty_like(self.memory)
            base = arena.data_ptr()
            values += [base + offset for offset in self.offsets]
        values += self.numbers
        for start, arguments in self.steps:
            start(*arguments(values))
        return tuple(results)


def _pattern(like: Tensor) -> Tensor:
    """A tensor without memory, to allocate others by: that takes half the time of telling shape, dtype and device."""
    pattern = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    pattern.untyped_storage().resize_(0)
    return pattern


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
