"""Frozen, validated configuration of the model, saved as JSON beside the weights.

Every class checks its values on construction, so a configuration that exists is one that can be built.
``to_dict`` and ``from_dict`` are exact inverses; an unknown key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

ConfigT = TypeVar("ConfigT", bound="Config")

FUSIONS = ("weighted", "sum", "learned")
NORMS = ("adaln", "none")
ROUTINGS = ("dynamic", "token_choice", "expert_choice")
POOLS = ("batch", "sample")
UNITS = ("frame", "sequence")
TEXT_ENCODERS = ("wordpiece", "huggingface", "clip")


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: must be {expected}, got {got!r}")


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """``value`` as the annotated ``kind``; JSON and YAML know no tuples and write 1.0 as 1."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    if isinstance(kind, type) and issubclass(kind, Config):
        return kind.from_dict(value, where=name)
    origin = typing.get_origin(kind)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), name, "a list", value)
        element = typing.get_args(kind)[0]
        return tuple(_coerce(element, item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str):
        _require(isinstance(value, kind), name, f"of type {kind.__name__}", value)
        _require(kind is bool or not isinstance(value, bool), name, f"of type {kind.__name__}", value)
    return value


@dataclass(frozen=True)
class Config:
    """Base of all configurations: conversion to and from plain mappings and JSON files.

    ``RENAMED`` maps names that a field had in files of earlier versions to its name of today.
    """

    RENAMED: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Any, *, where: str = "config") -> ConfigT:
        """Build from a mapping. Raises ``ValueError`` that names an unknown key, a wrong type or a bad value."""
        if not isinstance(values, dict):
            raise ValueError(f"{where}: must be a mapping, got {type(values).__name__}")
        values = {cls.RENAMED.get(key, key): value for key, value in values.items()}
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"{where}: unknown key {key!r}, expected any of {names}")
        for f in dataclasses.fields(cls):
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and f.name not in values:
                raise ValueError(f"{where}: missing key {f.name!r}")
        return cls(**{key: _coerce(hints[key], value, f"{where}.{key}") for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain values that ``from_dict`` turns back into an equal configuration."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def load(cls: type[ConfigT], path: str | Path) -> ConfigT:
        """Read a JSON or YAML file (by suffix). Raises ``ValueError`` naming the file and the offending key."""
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(text)
        else:
            try:
                values = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: not valid JSON: {error}") from error
        return cls.from_dict(values, where=str(path))


def check_moe(config: Any) -> None:
    """Validate the routing values that ``DenoiserConfig`` and ``InterMoEBlock`` share."""
    _require(0.0 < config.capacity <= config.num_experts, "capacity", "in (0, num_experts]", config.capacity)
    _require(config.fusion in FUSIONS, "fusion", f"one of {FUSIONS}", config.fusion)
    _require(0.0 <= config.alpha <= 1.0, "alpha", "in [0, 1]", config.alpha)
    _require(config.num_shared_experts >= 0, "num_shared_experts", ">= 0", config.num_shared_experts)
    _require(config.bias_rate >= 0.0, "bias_rate", ">= 0", config.bias_rate)
    _require(-1.0 < config.bias_init < 0.0, "bias_init", "strictly inside (-1, 0)", config.bias_init)
    for name, known in (("routing", ROUTINGS), ("pool", POOLS), ("unit", UNITS)):
        _require(getattr(config, name) in known, name, f"one of {known}", getattr(config, name))
    if config.routing == "token_choice":
        fits = config.top_k is not None and 1 <= config.top_k <= config.num_experts
        _require(fits, "top_k", "in [1, num_experts] for routing='token_choice'", config.top_k)
    else:
        _require(config.top_k is None, "top_k", f"None for routing={config.routing!r}", config.top_k)
    alone = (config.routing, config.pool, config.unit) == ("expert_choice", "sample", "sequence")
    _require(not alone, "unit", "'frame' with expert_choice in pools of one sample, which hold one row", config.unit)
