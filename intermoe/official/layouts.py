"""Published checkpoints by their keys: which system, or which evaluator, a file is of."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from intermoe.checkpoints import load_tensors
from intermoe.registry import Registry
from intermoe.systems.published import Layout

LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "intermoe": "intermoe.official.checkpoint:LAYOUT",
        "intergen": "intermoe.systems.intergen.official:LAYOUT",
        "timotion": "intermoe.systems.timotion.official:LAYOUT",
        "intermask": "intermoe.systems.intermask.official:LAYOUT",
        "mdm": "intermoe.systems.mdm.official:LAYOUT",
        "commdm": "intermoe.systems.mdm.official:LAYOUT_OF_TWO",
        "interclip": "intermoe.evaluators.official:LAYOUT",
        "bigru": "intermoe.evaluators.official:LAYOUT_OF_BIGRU",
    },
)
"""What is read; no key belongs to two."""


def layout_of(path: str | Path) -> Layout:
    """The layout that a checkpoint has.

    Raises:
        FileNotFoundError: no such file. ValueError: no checkpoint, or none of ``LAYOUTS``; says what is expected.
    """
    keys = published_keys(Path(path))
    for name in LAYOUTS:
        if LAYOUTS[name].fits(keys):
            return LAYOUTS[name]
    titles = ", ".join(LAYOUTS[name].title for name in LAYOUTS)
    raise ValueError(
        f"{path}: expected a published checkpoint of {titles}, got one with the keys {sorted(keys)[:3]}..."
    )


def published_keys(path: Path) -> frozenset[str]:
    """The keys of a file's state dict, or of its several ones, as ``"part/key"``, with the names of the parts."""
    loaded = load_tensors(path)
    state = loaded.get("state_dict", loaded)
    keys = set()
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, dict):
            keys |= {name} | {f"{name}/{key}" for key, inner in value.items() if isinstance(inner, Tensor)}
        elif isinstance(value, Tensor):
            keys.add(name)
    return frozenset(str(key) for key in keys)
