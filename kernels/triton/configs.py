"""Tile shapes of the grouped products, per architecture, precision and size class: shipped, or from a user's table.

The table is keyed by the average rows per expert S / E, which the host knows, never by the number of selected pairs,
which it doesn't: the same call always runs the same configuration, so results are bitwise reproducible on one device.
A user's table replaces single entries; see ``use_table``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .plan import forget

KERNELS = ("up", "down", "grad_hidden", "grad_pairs", "grad_weight")
PRECISIONS = ("half", "tf32", "ieee")
SIZES = ("small", "medium", "large")
SMALL_ROWS, MEDIUM_ROWS = 48, 192
"""Average rows per expert up to which a call is "small" or "medium": one and a half times the lowest and the highest
tile of the tables below."""


@dataclass(frozen=True)
class Tile:
    """One program's tile: block_m rows x block_n columns, block_k of the reduction per step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 16 if field.name.startswith("block") else 1
            if not isinstance(value, int) or value < least or (field.name != "num_stages" and value & (value - 1)):
                number = "a number" if field.name == "num_stages" else "a power of two"
                raise ValueError(f"{field.name}: expected {number} >= {least}, got {value!r}")


@dataclass(frozen=True)
class Key:
    """What a tile was chosen for."""

    architecture: int
    kernel: str
    precision: str
    size: str

    def __post_init__(self) -> None:
        for name, known in (("kernel", KERNELS), ("precision", PRECISIONS), ("size", SIZES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")


# kernel: (small, medium, large). "up" computes two products at once, so its block_n counts twice. Each compiles without
# spilling. Hopper's were chosen by time on an H100, the others were not timed yet; `intermoe tune` times them.
_Table = dict[str, tuple[Tile, Tile, Tile]]
_GEFORCE_HALF: _Table = {  # 100 KB of shared memory per multiprocessor
    "up": (Tile(32, 64, 64, 4, 3), Tile(64, 64, 64, 4, 3), Tile(128, 64, 64, 8, 3)),
    "down": (Tile(32, 64, 64, 4, 3), Tile(64, 128, 32, 4, 4), Tile(128, 128, 32, 8, 4)),
    "grad_hidden": (Tile(32, 64, 64, 4, 3), Tile(64, 128, 32, 4, 4), Tile(128, 128, 32, 8, 4)),
    "grad_pairs": (Tile(32, 64, 64, 4, 3), Tile(64, 128, 32, 4, 4), Tile(128, 128, 32, 8, 4)),
    "grad_weight": (Tile(128, 128, 32, 8, 5),) * 3,
}
_A100_HALF: _Table = {
    "up": (Tile(32, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4), Tile(128, 64, 64, 8, 4)),
    "down": (Tile(32, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3)),
    "grad_hidden": (Tile(32, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3)),
    "grad_pairs": (Tile(32, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3)),
    "grad_weight": (Tile(128, 128, 32, 8, 5), Tile(128, 128, 64, 8, 5), Tile(128, 128, 64, 8, 5)),
}
_HOPPER_HALF: _Table = {  # tiles of at least 64 rows, the least that its matrix units take
    "up": (Tile(64, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4), Tile(128, 128, 64, 8, 4)),
    "down": (Tile(64, 64, 128, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 256, 64, 8, 4)),
    "grad_hidden": (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 256, 64, 8, 4)),
    "grad_pairs": (Tile(64, 64, 128, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 256, 64, 8, 4)),
    "grad_weight": (Tile(64, 128, 64, 4, 3), Tile(128, 128, 32, 8, 5), Tile(128, 128, 32, 4, 5)),
}
_TF32: _Table = {
    "up": (Tile(32, 64, 32, 4, 4), Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 8, 3)),
    "down": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 128, 16, 8, 4)),
    "grad_hidden": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 128, 16, 8, 4)),
    "grad_pairs": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 128, 16, 8, 4)),
    "grad_weight": (Tile(128, 128, 16, 8, 5), Tile(128, 128, 32, 8, 3), Tile(128, 128, 32, 8, 3)),
}
_A100_TF32: _Table = {**_TF32, "up": (Tile(32, 64, 32, 4, 4), Tile(64, 64, 32, 4, 3), Tile(128, 64, 16, 8, 4))}
_HOPPER_TF32: _Table = {
    "up": (Tile(32, 64, 32, 4, 4), Tile(64, 64, 32, 4, 3), Tile(128, 128, 32, 8, 4)),
    "down": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 256, 32, 8, 4)),
    "grad_hidden": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 64, 32, 4, 3)),
    "grad_pairs": (Tile(32, 64, 32, 4, 4), Tile(64, 128, 16, 4, 4), Tile(128, 64, 32, 4, 3)),
    "grad_weight": (Tile(128, 128, 16, 8, 5), Tile(128, 128, 32, 8, 3), Tile(128, 128, 32, 8, 2)),
}
# Products in full float32 run on the ordinary units: small tiles, bound by arithmetic everywhere.
_IEEE: _Table = {
    "up": (Tile(32, 32, 16, 4, 2),) * 3,
    "down": (Tile(32, 64, 16, 4, 2),) * 3,
    "grad_hidden": (Tile(32, 64, 16, 4, 2),) * 3,
    "grad_pairs": (Tile(32, 64, 16, 4, 3),) * 3,
    "grad_weight": (Tile(64, 64, 16, 8, 2),) * 3,
}
_INTERPRETER: _Table = {kernel: (Tile(16, 16, 32, 1, 1),) * 3 for kernel in KERNELS}
_GEFORCE: dict[str, _Table] = {"half": _GEFORCE_HALF, "tf32": _TF32, "ieee": _IEEE}
_HOPPER: dict[str, _Table] = {"half": _HOPPER_HALF, "tf32": _HOPPER_TF32, "ieee": _IEEE}

_SHIPPED: dict[int, dict[str, _Table]] = {
    0: {"half": _INTERPRETER, "tf32": _INTERPRETER, "ieee": _INTERPRETER},  # the interpreter on CPU
    80: {"half": _A100_HALF, "tf32": _A100_TF32, "ieee": _IEEE},
    86: _GEFORCE,
    89: _GEFORCE,
    90: _HOPPER,
    100: _HOPPER,
    120: _GEFORCE,
}
_user: dict[Key, Tile] = {}


def precision_of(dtype: torch.dtype) -> str:
    """Precision class of products of this dtype now: float32 follows ``torch.get_float32_matmul_precision``."""
    if dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def size_class(num_tokens: int, num_experts: int) -> str:
    """Size class of a pool, by its average rows per expert."""
    rows = num_tokens / num_experts
    return "small" if rows <= SMALL_ROWS else "medium" if rows <= MEDIUM_ROWS else "large"


@functools.cache
def architecture_of(device: torch.device) -> int:
    """Compute capability of ``device`` as a number (86 for 8.6), 0 for a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def tile(architecture: int, kernel: str, precision: str, size: str) -> Tile:
    """The tile in force: the user's for exactly this key, else the shipped one of the newest known architecture
    that is not newer than this one."""
    key = Key(architecture, kernel, precision, size)
    if key in _user:
        return _user[key]
    known = max(a for a in _SHIPPED if a <= architecture)
    return _SHIPPED[known][precision][kernel][SIZES.index(size)]


def shipped(architecture: int) -> dict[Key, Tile]:
    """Every shipped configuration that runs on this architecture."""
    known = max(a for a in _SHIPPED if a <= architecture)
    return {
        Key(architecture, kernel, precision, size): _SHIPPED[known][precision][kernel][SIZES.index(size)]
        for precision in PRECISIONS
        for kernel in KERNELS
        for size in SIZES
    }


def read_table(path: str | Path) -> dict[Key, Tile]:
    """Read a table from a JSON file: a list of objects with the fields of ``Key`` and of ``Tile``.

    Raises:
        ValueError: for anything else, naming the entry.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of entries, got {type(entries).__name__}")
    table: dict[Key, Tile] = {}
    for number, entry in enumerate(entries):
        try:
            key = Key(**{field.name: entry.pop(field.name) for field in fields(Key)})
            table[key] = Tile(**entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: entry {number}: {error}") from error
    return table


def table_json(table: dict[Key, Tile]) -> list[dict[str, Any]]:
    """The entries that ``read_table`` reads back."""
    return [{**asdict(key), **asdict(chosen)} for key, chosen in table.items()]


def use_table(path: str | Path | None) -> None:
    """Use the entries of this JSON table instead of the shipped ones from now on; ``None`` returns to those.

    Another tile sums in another order, so results then differ from before in the last bits.
    """
    table = {} if path is None else read_table(path)
    _replace_user_table(table)


@contextmanager
def overridden(key: Key, chosen: Tile) -> Iterator[None]:
    """Use this tile for this key within the ``with`` block."""
    before = dict(_user)
    _replace_user_table({**before, key: chosen})
    try:
        yield
    finally:
        _replace_user_table(before)


def _replace_user_table(table: dict[Key, Tile]) -> None:
    _user.clear()
    _user.update(table)
    tile.cache_clear()
    forget()
