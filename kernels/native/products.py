"""Matrix products on a CPU, each through what is fastest there: torch, torch's oneDNN, or the library's own.

Which one is read from ``fastest.FASTEST``, by machine, dtype, form of product and rows; nothing is timed here.

Parameters are kept in the order in which a product reads them, from their first use on: a first call
without would round otherwise than the same call after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import library
from .fastest import FASTEST, Limits
from .registry import CODES, call

FORMS = ("packed", "rows", "columns", "sums")
"""Right factors that are kept in whatever order, with a row per output, as stored; and left factors of sums over rows.

All are chosen by the number of rows of the left factor, ``sums`` by the number of rows that are summed."""

CHOICES = ("torch", "float32", "onednn", "own")
"""``torch.mm``; the same on float32 copies; ``mkldnn._linear_pointwise``, for weights with a row per output; ours."""

ORDERED = "onednn, packed"
"""A further choice for weights that are kept: ``onednn`` with them in its own order."""

PROBES = 256
"""Elements of a kept weight that are compared before each use: what changes it behind its version is seen there."""

_HALF = (torch.float16, torch.bfloat16)


def has_units(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies ``dtype`` matrices at speed; where not, float32 is several times faster."""
    if dtype not in _HALF:
        return True
    if not torch.backends.mkldnn.is_available():  # a torch built without oneDNN does not know the questions below
        return False
    units = library.half_units()
    if units is not None:  # oneDNN also says yes where it emulates them
        return bool(units & (2 if dtype == torch.float16 else 1))
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


@functools.cache
def machine() -> str:
    """The name of this machine in the table: vendor, instruction set, and the half types that it has units for."""
    units = "".join(f"+{name}" for name, dtype in (("bf16", _HALF[1]), ("fp16", _HALF[0])) if has_units(dtype))
    return f"{library.vendor()} {library.instruction_set()}{units}"


@functools.cache
def _limits(form: str, dtype: torch.dtype) -> Limits:
    measured = FASTEST.get(machine(), {}).get((str(dtype).removeprefix("torch."), form))
    return measured or _unmeasured(form, dtype, library.instruction_set())


def _unmeasured(form: str, dtype: torch.dtype, instruction_set: str) -> Limits:
    """What holds for machines that are not in the table, from those that are."""
    if has_units(dtype) and dtype in _HALF:
        return ((None, "torch"),)
    if instruction_set == "avx512" or (dtype in _HALF and form in ("packed", "rows")):
        return ((None, "own"),)
    if dtype in _HALF:
        return ((None, "float32"),)
    if instruction_set == "avx2" and form in ("packed", "rows"):
        return ((64, "own"), (None, "torch"))
    return ((None, "torch"),)


def choice(form: str, dtype: torch.dtype, rows: int) -> str:
    """One of ``CHOICES`` for a product of ``form`` with so many rows."""
    return next(name for limit, name in _limits(form, dtype) if limit is None or rows <= limit)


def product(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """out (M, N) = [out +] left (M, K) . right (K, N), both of one dtype; ``out`` may be float32 beside half types."""
    transposed = left.stride(1) != 1 and left.stride(0) == 1
    form = "sums" if transposed else "rows" if right.stride(0) == 1 else "columns"
    run(choice(form, left.dtype, left.shape[1 if transposed else 0]), left, right, out, add=add)


def run(name: str, left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """``product`` through the named one."""
    if name == "own":
        wide = out.dtype != left.dtype
        sizes = (*out.shape, left.shape[1])
        options = (int(add), int(wide), CODES[left.dtype])
        arrays = (*left.stride(), right, *right.stride(), 0, None, out, out.stride(0))
        call("product", left, *arrays, *sizes, *options)
        return
    if name == "onednn" and not add:
        out.copy_(_onednn(left, right.T, None))
    elif name == "float32" or out.dtype != left.dtype:
        left, right = left.float(), right.float()
        if out.dtype == torch.float32:
            torch.addmm(out, left, right, beta=int(add), out=out)
        elif add:
            out.add_(torch.mm(left, right))
        else:
            out.copy_(torch.mm(left, right))
    elif add:
        torch.addmm(out, left, right, out=out)
    else:
        torch.mm(left, right, out=out)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def linear(x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear`` of x (..., K), weight (N, K) and bias (N,), of one dtype, not differentiated."""
    rows = x.numel() // x.shape[-1]
    ordered = in_onednn_order(weight, rows)
    if ordered is not None:
        return _onednn(x, ordered[0], bias)
    held = packed(weight, rows, paired=False)
    name = choice("rows" if held is None else "packed", x.dtype, rows)
    if name == "own":
        x = x if x.is_contiguous() else x.contiguous()
        num_outputs, depth = weight.shape
        out = x.new_empty(*x.shape[:-1], num_outputs)
        right = (weight, *weight.stride()[::-1], 0) if held is None else (held, 0, 0, 1)
        sizes = (num_outputs, rows, num_outputs, depth, 0, 0, CODES[x.dtype])
        call("product", x, depth, 1, *right, bias, out, *sizes)
        return out
    if name == "onednn":
        return _onednn(x, weight, bias)
    if name == "float32":
        wide = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(x.dtype)
    return nn.functional.linear(x, weight, bias)


class _Kept(NamedTuple):
    """A weight as it was when it was used last, and what was made of it then."""

    state: tuple[Any, ...]
    storage: Tensor
    """keeps the memory, so that no other weight comes to lie there"""
    probes: Tensor
    made: Any


_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def packed(weight: Tensor, rows: int, *, paired: bool) -> Tensor | None:
    """A parameter (N, K), or (E, N, K) of experts, in the library's order, for a product with so many rows.

    ``None`` for other tensors, and where the table has something faster.

    It is made anew when the parameter's version, memory or shape is another, or one of ``PROBES`` elements is, and is
    freed with the parameter. What is written past the version (through ``.data`` or NumPy) into few elements of a
    weight goes unseen.
    """
    made: Tensor | None = _made("own", weight, rows, lambda stored: _pack(stored, paired), paired)
    return made


def in_onednn_order(weight: Tensor, rows: int) -> list[Tensor] | None:
    """As ``packed`` in oneDNN's order, for ``ordered_product``: one tensor, or one for each expert."""
    made: list[Tensor] | None = _made(ORDERED, weight, rows, _in_onednn_order)
    return made


def ordered_product(left: Tensor, ordered: Tensor, out: Tensor) -> None:
    """out (M, N) = left (M, K) . right, a weight of ``in_onednn_order``."""
    out.copy_(_onednn(left, ordered, None))


def _in_onednn_order(weight: Tensor) -> list[Tensor]:
    experts = weight[None] if weight.dim() == 2 else weight
    return [torch.ops.mkldnn._reorder_linear_weight(expert.contiguous()) for expert in experts]


def _made(name: str, weight: Tensor, rows: int, make: Callable[[Tensor], Any], *how: Any) -> Any:
    """What ``make`` made of a parameter, if ``name`` is what the table has for it, and ``None`` elsewhere."""
    if type(weight) is not nn.Parameter or weight.is_inference() or choice("packed", weight.dtype, rows) != name:
        return None
    kept: dict[str, _Kept] = _kept.setdefault(weight, {})
    state = (weight._version, weight.data_ptr(), weight.shape, weight.stride(), how, library.instruction_set())
    last = kept.get(name)
    if last is None or last.state != state or not torch.equal(_probes(last.storage), last.probes):
        for other in [each for each in kept if kept[each].state[:4] != state[:4]]:
            del kept[other]  # made of what the weight no longer is, in memory that nothing else may hold
        storage = weight.detach()
        last = kept[name] = _Kept(state, storage, _probes(storage).clone(), make(storage))
    return last.made


def _probes(weight: Tensor) -> Tensor:
    step = max(weight.numel() // PROBES, 1)
    if not weight.is_contiguous():
        return weight.reshape(-1)[::step]
    return weight.view(-1)[:: step | 1]  # odd: all columns have their turn


def _pack(weight: Tensor, paired: bool) -> Tensor:
    experts = weight[None] if weight.dim() == 2 else weight
    num_outputs, depth = experts.shape[1:]
    count = library.load().intermoe_packed_count(num_outputs, depth, int(paired))
    packed = _in_large_pages(weight, len(experts), count)
    for expert, out in zip(experts, packed, strict=True):
        sizes = (*expert.stride()[::-1], num_outputs, depth, int(paired))
        call("pack", expert, *sizes, out, CODES[weight.dtype])
    return packed


def _in_large_pages(like: Tensor, rows: int, columns: int) -> Tensor:
    """Uninitialised memory (rows, columns), in large pages where the system has them.

    With few rows a product waits for the look-up of small pages (`benchmarks/harness/shares.py` times the whole).
    """
    native = library.load()
    page, size = native.intermoe_large_page(), rows * columns * like.element_size()
    if size < page or page == 0:
        return like.new_empty(rows, columns)
    room = like.new_empty(rows * columns + page // like.element_size())
    start = -room.data_ptr() % page // like.element_size()
    found = room[start : start + rows * columns].view(rows, columns)
    native.intermoe_use_large_pages(found.data_ptr(), size)
    return found
