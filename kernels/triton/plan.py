"""A call's launches, made once and then repeated: a later call only fills in pointers.

The Python code of the steps is what defines a call. Its first run for a set of shapes, dtypes, devices, alignments and
options is recorded: which kernels it started on which grids, and of every argument whether it was an input, a result,
memory in between, or a number. From then on the same launches are made of that record, all in one call of the CUDA
driver's library (``driver.py``) where that can be, and otherwise one by one. Results are allocated one by one, as they
live on their own, but for those that are kept ``Together``; all memory in between is one allocation, in which what is
written later takes the place of what is read no more: launches of a stream run one after the other.

A run that did anything else than allocate and launch (a copy into dense memory, a cast, a read) is not repeated so:
such calls take the Python code each time.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..contract import described
from . import driver
from .registry import INTERPRETED
from .together import Form, Layout, Together, aligned, allocator

MOST_PLANS = 1024
"""More are made anew: pools of many lengths must not fill the memory."""

Results = tuple[Any, ...]
"""Tensors, ``Together``, or ``None``."""

Step = Callable[..., Results]

_data_ptr = Tensor.data_ptr
_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.new_empty.default,
    _aten.empty_like.default,
    _aten.empty_strided.default,
}
_VIEWS = {_aten.slice.Tensor, _aten.view.default, _aten.view.dtype, _aten.detach.default, _aten.alias.default}
_plans: dict[tuple[Any, ...], Plan | None] = {}


class _Active(threading.local):
    """What is recorded in this thread."""

    recorder: Recorder | None = None


_active = _Active()


class Started(NamedTuple):
    """A launch as it was made: the compiled kernel, its grid, and all that its launcher takes."""

    compiled: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    given: int
    """how many of the arguments are the kernel's own; the others are constants of its compilation"""


class Recorder(TorchDispatchMode):
    """What a run allocates and launches; ``others`` are operations that no plan repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Started] = []
        self.buffers: list[Tensor] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.buffers.append(out)
        elif func not in _VIEWS:
            self.others.append(str(func))
        return out


def record(started: Started) -> None:
    """Note a launch, where a run is recorded in this thread."""
    recorder = _active.recorder
    if recorder is not None:
        recorder.launches.append(started)


def forget() -> None:
    """Drop all plans: what they were made of has changed."""
    _plans.clear()


def planned(function: Step) -> Step:
    """A function of tensors, ``Together`` or ``None``, and keywords that decide what is launched, as a plan from its
    second call on.

    It returns tensors as it allocated them, inputs, ``Together`` of what it allocated, or ``None``; where it views
    parts of either no plan is made. Calls of one ``kind`` have tensors alike, which are not looked at then.
    """

    @functools.wraps(function)
    def call(*inputs: Any, kind: Hashable = None, **options: Any) -> Results:
        if INTERPRETED or _active.recorder is not None:
            return function(*inputs, **options)
        alike = kind if kind is not None else described(flat(inputs))
        key = (function, torch.get_float32_matmul_precision(), alike, *options.values())
        try:
            plan = _plans[key]
        except KeyError:
            results, plan, known = _recorded(function, inputs, options, kind is not None)
            if known:
                _plans[key] = plan
            return results
        return function(*inputs, **options) if plan is None else plan.run(inputs)

    return call


def flat(inputs: tuple[Any, ...]) -> Iterator[Tensor | None]:
    """The tensors one by one."""
    for one in inputs:
        if isinstance(one, Together):
            yield from one.tensors()
        else:
            yield one


def _recorded(
    function: Step, inputs: tuple[Any, ...], options: dict[str, Any], merges: bool
) -> tuple[Results, Plan | None, bool]:
    """Results, the plan if there is one, and whether this holds for all calls alike."""
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _active.recorder = recorder = Recorder()
    try:
        with recorder:
            results = function(*inputs, **options)
    finally:
        _active.recorder = None
    ranges = sorted(_range(t) for t in flat(inputs) if t is not None and t.numel())
    if any(one[1] > other[0] for one, other in itertools.pairwise(ranges)):
        return results, None, False  # as one argument given twice: a pointer does not tell which of them is meant
    plan = Plan(inputs, results, recorder, merges) if _can_repeat(inputs, results, recorder) else None
    return results, plan, True


def _can_repeat(inputs: tuple[Any, ...], results: Results, recorder: Recorder) -> bool:
    """Whether all pointers of a run can be told from those of its inputs, results and memory in between."""
    given = {id(t) for t in inputs if isinstance(t, Tensor)}
    known = [t for t in flat(inputs) if t is not None and t.numel()]
    ranges, foreign = [_range(t) for t in known], {_storage(t) for t in known}
    launched = (argument for one in recorder.launches for argument in one.arguments)
    for tensor in (argument for argument in launched if isinstance(argument, Tensor) and id(argument) not in given):
        within = any(start <= tensor.data_ptr() < end for start, end in ranges)
        if not within and (_storage(tensor) in foreign or tensor.storage_offset()):
            return False
    for result in flat(results):
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
    for number, one in enumerate(recorder.launches):
        for tensor in one.arguments:
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
        lying.append((start, start + aligned(one.size), one))
    return offsets, max((high for _, high, _ in lying), default=0)


class Plan:
    """The launches of one kind of call.

    ``bases`` are the pointers of a call's inputs, results and memory in between, in this order; ``places`` are what its
    kernels take: a base's number, and bytes from there.
    """

    def __init__(self, inputs: tuple[Any, ...], results: Results, recorder: Recorder, merges: bool) -> None:
        self.places: list[tuple[int, int]] = []
        self._starts: dict[int, int] = {}
        self._numbered = {id(t): number for number, t in enumerate(inputs) if t is not None}
        self._bases = 0
        self._ranges: list[tuple[int, int, int]] = []
        """of the inputs: the first and the end address, and the number of the place"""
        for one in inputs:
            self._take(one)
        self._apart = any(type(one) is Together and one.layout is None for one in inputs)
        self._forms: list[Form] = []
        """of all memory that a call allocates: that of the results, and last that in between"""
        self._joined: list[Callable[[list[Tensor]], Together]] = []
        """of results that are ``Together``, last one first: how they are made of what is allocated"""
        self._first_made = 1 + len(inputs) + sum(isinstance(one, Together) for one in results)
        self._results = _getter([self._result(one, merges) for one in results])
        self._between(recorder)
        launches = [(one, [self._source(a) for a in one.arguments]) for one in recorder.launches]
        self.numbers: list[Any] = []
        self.steps = []
        for one, sources in launches:
            taken = []
            for is_number, value in sources:
                taken.append(len(self.places) + len(self.numbers) if is_number else value)
                self.numbers += [value] * is_number
            self.steps.append((one.compiled[one.grid], itemgetter(*taken)))
        device = next(t.device for t in flat(inputs) if t is not None)
        self._allocate, self._allocate_seen = allocator(device), allocator(device, seen=True)
        self.program = driver.program(
            [(one, sources[: one.given]) for one, sources in launches], self.places, self._bases, device
        )

    def _place(self, address: int, offset: int = 0) -> None:
        self._starts[address] = len(self.places)
        self.places.append((self._bases, offset))

    def _take(self, one: Any) -> None:
        """An input: a base, or several."""
        if isinstance(one, Together):
            tensors = one.tensors()
            if one.layout is None:
                for tensor in tensors:
                    self._take(tensor)
                return
            for tensor, offset in zip(tensors, one.layout.offsets, strict=True):
                self._lies(tensor, offset)
        elif one is not None:
            self._lies(one)
        self._bases += 1

    def _lies(self, tensor: Tensor, offset: int = 0) -> None:
        """Part of an input's base."""
        if tensor.numel():
            self._ranges.append((*_range(tensor), len(self.places)))
            self.places.append((self._bases, offset))

    def _result(self, one: Any, merges: bool) -> int:
        """Its number in the list that ``run`` takes from: ``None``, the inputs, what is joined, what is made."""
        if one is None or id(one) in self._numbered:
            return 0 if one is None else 1 + self._numbered[id(one)]
        if not isinstance(one, Together):
            self._place(_storage(one))
            return self._first_made + self._allocates(Form.of(one))
        if merges:
            layout = Layout(one.tensors())
            for tensor, offset in zip(one.tensors(), layout.offsets, strict=True):
                self._place(_storage(tensor), offset)
            number = self._allocates(Form((layout.size,), (1,), torch.uint8))
            self._joined.insert(0, lambda made: Together.of(made[number], layout))
        else:
            parts = [self._result(tensor, merges) - self._first_made for tensor in one.tensors()]
            self._joined.insert(0, lambda made: Together(*[made[part] for part in parts]))
        return self._first_made - len(self._joined)

    def _allocates(self, form: Form) -> int:
        """The number of memory of this form, which is one more base."""
        self._bases += 1
        self._forms.append(form)
        return len(self._forms) - 1

    def _between(self, recorder: Recorder) -> None:
        between: list[tuple[int, Between]] = []
        uses = _uses(recorder)
        for buffer in recorder.buffers:
            storage = _storage(buffer)
            if storage in uses and storage not in self._starts:
                between.append((storage, Between(buffer.untyped_storage().nbytes(), *uses[storage])))
                self._starts[storage] = -1
        offsets, size = placed([one for _, one in between])
        self.arena = size
        if size:
            for (storage, _), offset in zip(between, offsets, strict=True):
                self._place(storage, offset)
            self._allocates(Form((size,), (1,), torch.uint8))

    def _source(self, argument: Any) -> tuple[bool, Any]:
        """Whether an argument is a number, ``None`` or a tensor that outlives all calls; and it, or else its place."""
        if not isinstance(argument, Tensor) or not argument.numel():
            return True, argument
        address = argument.data_ptr()
        for start, end, place in self._ranges:
            if start <= address < end:
                if address != start:  # within an input, at the same distance from its start in all calls
                    base, offset = self.places[place]
                    place = len(self.places)
                    self.places.append((base, offset + address - start))
                    self._ranges.insert(0, (address, address + 1, place))
                return False, place
        found = self._starts.get(_storage(argument))
        return (True, argument) if found is None else (False, found)

    def run(self, inputs: tuple[Any, ...]) -> Results:
        """Launch everything for other inputs of the same kind."""
        seen = torch._C._len_torch_dispatch_stack() or torch._C._get_deterministic_algorithms()
        allocate = self._allocate_seen if seen else self._allocate
        made = [allocate(*form) for form in self._forms]
        given = flat(inputs) if self._apart else inputs
        bases = [0 if one is None else one.data_ptr() for one in given]
        bases += map(_data_ptr, made)
        if self.program is None or not self.program.run(bases):
            values: list[Any] = [bases[base] + offset for base, offset in self.places]
            values += self.numbers
            for start, arguments in self.steps:
                start(*arguments(values))
        return self._results((None, *inputs, *[join(made) for join in self._joined], *made))


def _getter(numbers: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What takes the values of these numbers."""
    if len(numbers) > 1:
        return itemgetter(*numbers)
    return lambda values: tuple([values[number] for number in numbers])


def _range(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte, and of what lies behind the last one where the memory is dense."""
    start = tensor.data_ptr()
    return start, start + (tensor.nbytes if tensor.is_contiguous() else 1)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
