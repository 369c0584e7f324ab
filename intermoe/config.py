"""Frozen, validated configuration of the model, saved as JSON beside the weights.

Every class checks its values on construction, so a configuration that exists is one that can be built.
``to_dict`` and ``from_dict`` are exact inverses; an unknown key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from intermoe.reading import read_json, read_text

ConfigT = TypeVar("ConfigT", bound="Config")

FUSIONS = ("weighted", "sum", "learned")
NORMS = ("adaln", "none")
ROUTINGS = ("dynamic", "token_choice", "expert_choice")
POOLS = ("batch", "sample")
UNITS = ("frame", "sequence")
MAX_LAYERS = 1000
MAX_SIZE = 10**6
"""Of the layers and of a size of any network here; a foreign file may ask for more than memory holds."""

WHOLE_NUMBER = "a whole number of 64 bits"

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.I)


class ConfigError(ValueError):
    """``name`` is the key's, with those of its sections before it: ``optim.steps``."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}" if name else problem)
        self.name, self.problem = name, problem


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(name, f"expected {expected}, got {got!r}")


def _as_float(value: Any) -> float:
    """``value``, a real number, as a ``float``; NaN for anything else and for what is too large for one."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _number(value: Any) -> int | float:
    """A number of numpy's as Python's, for JSON."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def check_integer(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """``value`` as an ``int``, whatever integer it is (numpy's too); a truth value is none.

    Raises:
        TypeError: no integer. ValueError: outside [low, high], or of more than 64 bits.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f">= {low}" if high is None else f"<= {high}" if low is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: expected a value {bounds}, got {number}")
    if not _fits(number):
        raise ValueError(f"{name}: expected {WHOLE_NUMBER}, got {number}")
    return number


def check_number(value: Any, name: str) -> float:
    """``value`` as a ``float``, whatever real number it is. Raises ``ConfigError`` for what is none or not finite."""
    number = _as_float(value)
    _require(math.isfinite(number), name, "a finite number", value)
    return number


def check_flag(value: Any, name: str) -> bool:
    """``value``, a truth value. Raises ``TypeError`` for anything else, which Python would take for one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_text(value: Any, name: str, expected: str = "a text") -> str:
    """``value``, a text that is not empty. Raises ``TypeError`` for what is none, ``ValueError`` for an empty one."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not value.strip():
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


def check_several(values: Any, name: str) -> tuple[Any, ...]:
    """``values`` as a tuple. Raises ``TypeError`` for what are not several; text and mappings are not."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{name}: expected a list or the like, got {values!r}")
    return tuple(values)


def check_guidance(value: Any) -> float:
    """``value``, a guidance scale. Raises ``TypeError`` for no number, ``ValueError`` for one below 1 or not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"guidance_scale: expected a number, got {value!r}")
    if not 1 <= float(value) < math.inf:
        raise ValueError(f"guidance_scale: expected >= 1 and finite, got {value}")
    return float(value)


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _coerce(annotation: Any, value: Any, name: str) -> Any:
    """``value`` as its field is annotated; JSON and YAML know no tuples and write 1.0 as 1."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(annotation):
            return None
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    if isinstance(value, Config):
        return value
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation._build(value, name)
    origin = typing.get_origin(annotation)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), name, "a list", value)
        element = typing.get_args(annotation)[0]
        return tuple(_coerce(element, item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if annotation is float:
        # a number as 1e-3 is a string to YAML 1.1
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        return check_number(value, name)
    if annotation is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        _require(_fits(int(value)), name, WHOLE_NUMBER, value)
        return int(value)
    if annotation in (bool, int, str):
        _require(isinstance(value, annotation), name, f"a value of type {annotation.__name__}", value)
        _require(
            annotation is bool or not isinstance(value, bool), name, f"a value of type {annotation.__name__}", value
        )
    return value


@dataclass(frozen=True)
class Config:
    """Base of all configurations: conversion to and from plain mappings and JSON files.

    ``RENAMED`` maps names that a field had in files of earlier versions to its name of today.
    """

    RENAMED: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Values are of their fields' types before a class compares them, wherever they come from."""
        super().__init_subclass__(**options)
        if (check := cls.__dict__.get("__post_init__")) is None:
            return

        def checked(self: Config) -> None:
            Config.__post_init__(self)
            check(self)

        cls.__post_init__ = checked  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            object.__setattr__(self, name, _coerce(annotation, getattr(self, name), name))

    @classmethod
    def from_dict(cls: type[ConfigT], values: Any, *, where: str = "config") -> ConfigT:
        """Build from a mapping. Raises ``ValueError`` that names an unknown key, a wrong type or a bad value."""
        return cls._build(values, where)

    @classmethod
    def _build(cls: type[ConfigT], values: Any, section: str) -> ConfigT:
        if not isinstance(values, dict):
            raise ConfigError(section, f"expected a mapping, got {type(values).__name__}")
        for old, new in cls.RENAMED.items():
            if old in values and new in values:
                raise ConfigError(section, f"key {new!r} is there twice, once by its earlier name {old!r}")
        values = {cls.RENAMED.get(key, key): value for key, value in values.items()}
        hints = _annotations(cls)
        fields = dataclasses.fields(cls)
        names = [f.name for f in fields]
        for key in values:
            if key not in names:
                raise ConfigError(section, f"unknown key {key!r}, expected any of {names}")
        for f in fields:
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and f.name not in values:
                raise ConfigError(section, f"missing key {f.name!r}")
        prefix = f"{section}." if section else ""
        coerced = {key: _coerce(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
        try:
            return cls(**coerced)
        except ConfigError as error:
            defaults = _defaults_in(error, values, set(names))
            told = f" ({', '.join(defaults)}: the default)" if defaults else ""
            raise ConfigError(f"{prefix}{error.name}", f"{error.problem}{told}") from None

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain values that ``from_dict`` turns back into an equal configuration."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=_number))
        return plain

    @classmethod
    def load(cls: type[ConfigT], path: str | Path) -> ConfigT:
        """Read a JSON or YAML file (by suffix).

        Of YAML, a number is decimal or as ``0x1f`` or ``0o17``, and only ``true`` and ``false`` are truth values: what
        YAML 1.1 makes of ``010``, ``1:30``, ``2001-01-01``, ``no`` and the like is a surprise, and stays text.

        Raises:
            ValueError: a file that is malformed or repeats a key, or a value out of place; names the file, the key with
                its sections, the value, and the bound that it breaks. OSError: no such file.
        """
        values = read_values(path)
        try:
            return cls._build(values, "")
        except ConfigError as error:
            raise ValueError(f"{path}: {error}") from None


def _annotations(cls: type[Config]) -> dict[str, Any]:
    """The types of a configuration's fields."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _defaults_in(error: ConfigError, values: dict[str, Any], names: set[str]) -> list[str]:
    """Those keys that the error speaks of, its own and those of the bound, that are at their defaults."""
    told = [error.name, *re.findall(r"([a-z_][\w.]*)=", error.problem)]
    return [key for key in dict.fromkeys(told) if key.split(".")[0] in names and not _is_given(values, key)]


def _is_given(values: Any, key: str) -> bool:
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def read_values(path: str | Path) -> Any:
    """What a JSON or YAML file (by suffix) holds; see ``Config.load`` for what is read of YAML, and for the errors."""
    path = Path(path)
    return _read_yaml(path) if path.suffix in (".yaml", ".yml") else read_json(path)


def _read_yaml(path: Path) -> Any:
    import yaml

    text = read_text(path)
    try:
        return yaml.load(text, _yaml_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(
            f"{path}: {place}expected valid YAML: {' '.join(filter(None, (error.context, error.problem)))}"
        ) from error
    except Exception as error:  # a tag on text that does not fit it raises whatever its constructor stumbles over
        raise ValueError(f"{path}: expected valid YAML: {error}") from error


@functools.cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader without the surprises of YAML 1.1, and strict about repeated keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    problem = f"key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

        def construct_number(self, node: Any) -> int:
            return int(self.construct_scalar(node).replace("_", ""), 0)

    Loader.yaml_implicit_resolvers = {}
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_number)
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)", list("-+0123456789")),
        ("float", r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("merge", r"<<", ["<"]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), first)
    return Loader


def check_folder_name(name: str, *taken: str) -> None:
    """Refuse a row's ``name`` that is no name of a folder of its own, or one of those that are ``taken``."""
    ok = bool(name.strip()) and Path(name).name == name != ".." and "\0" not in name and name not in taken
    _require(ok, "name", "a name usable for a folder" + "".join(f", not {each!r}" for each in taken), name)


def check_sizes(config: Any, names: Iterable[str]) -> None:
    """Validate sizes of a network."""
    for name in names:
        _require(1 <= getattr(config, name) <= MAX_SIZE, name, f"a value in [1, {MAX_SIZE}]", getattr(config, name))


def check_moe(config: Any) -> None:
    """Validate the routing values that ``DenoiserConfig`` and ``InterMoEBlock`` share."""
    _require(
        0.0 < config.capacity <= config.num_experts,
        "capacity",
        f"a value in (0, num_experts={config.num_experts}]",
        config.capacity,
    )
    _require(config.fusion in FUSIONS, "fusion", f"one of {FUSIONS}", config.fusion)
    _require(0.0 <= config.alpha <= 1.0, "alpha", "a value in [0, 1]", config.alpha)
    _require(config.num_shared_experts >= 0, "num_shared_experts", ">= 0", config.num_shared_experts)
    _require(config.bias_rate >= 0.0, "bias_rate", ">= 0", config.bias_rate)
    _require(-1.0 < config.bias_init < 0.0, "bias_init", "a value strictly inside (-1, 0)", config.bias_init)
    for name, known in (("routing", ROUTINGS), ("pool", POOLS), ("unit", UNITS)):
        _require(getattr(config, name) in known, name, f"one of {known}", getattr(config, name))
    if config.routing == "token_choice":
        fits = config.top_k is not None and 1 <= config.top_k <= config.num_experts
        bound = f"a value in [1, num_experts={config.num_experts}] for routing='token_choice'"
        _require(fits, "top_k", bound, config.top_k)
    else:
        _require(config.top_k is None, "top_k", f"None for routing={config.routing!r}", config.top_k)
    alone = (config.routing, config.pool, config.unit) == ("expert_choice", "sample", "sequence")
    _require(not alone, "unit", "'frame' with expert_choice in pools of one sample, which hold one row", config.unit)
