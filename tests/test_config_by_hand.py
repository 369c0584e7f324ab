"""What a configuration's values may be, check by check, and how an error names its key."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from intermoe.config import (
    MAX_SIZE,
    Config,
    ConfigError,
    check_flag,
    check_folder_name,
    check_guidance,
    check_integer,
    check_number,
    check_several,
    check_sizes,
    check_text,
    read_values,
)


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_the_least_and_the_most_of_64_bits(number: int) -> None:
    assert check_integer(number, "seed") == number
    assert check_integer(number, "seed", low=number, high=number) == number
    assert Part(count=number).count == number
    beyond = number + (1 if number > 0 else -1)
    told = f"expected a whole number of 64 bits, got {beyond}"
    with pytest.raises(ValueError, match=f"^seed: {told}$"):
        check_integer(beyond, "seed")
    with pytest.raises(ConfigError, match=f"^count: {told}$"):
        Part(count=beyond)


@pytest.mark.parametrize(("value", "expected"), [(3, 3.0), (np.float32(0.5), 0.5), (Fraction(1, 4), 0.25), (-0.0, 0.0)])
def test_real_numbers_are_floats(value: Any, expected: float) -> None:
    found = check_number(value, "rate")
    assert (found, type(found)) == (expected, float)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -math.inf, 10**400, 1j])
def test_what_is_no_finite_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'rate: expected a finite number, got {value!r}')}$") as told:
        check_number(value, "rate")
    assert told.value.name == "rate"


def test_truth_values_texts_and_several_are_what_they_are() -> None:
    assert (check_flag(True, "x"), check_flag(False, "x")) == (True, False)
    for value in (0, 1, None, "yes", np.True_):
        with pytest.raises(TypeError, match=f"^{re.escape(f'x: expected True or False, got {value!r}')}$"):
            check_flag(value, "x")
    assert check_text(" a ", "x") == " a "
    for value, error in ((3, TypeError), (b"a", TypeError), (None, TypeError), ("", ValueError), (" \n", ValueError)):
        with pytest.raises(error, match=f"^{re.escape(f'x: expected a branch, got {value!r}')}$"):
            check_text(value, "x", "a branch")
    with pytest.raises(TypeError, match=r"^x: expected a text, got 3$"):
        check_text(3, "x")
    for values in ([1, "a"], (1, "a"), iter([1, "a"]), {1: 0, "a": 0}.keys()):
        assert check_several(values, "x") == (1, "a")
    for value in ("ab", b"ab", {1: 0}, 3, None):
        with pytest.raises(TypeError, match=f"^{re.escape(f'x: expected a list or the like, got {value!r}')}$"):
            check_several(value, "x")


def test_guidance_is_1_or_more() -> None:
    for value in (1, 1.0, np.float32(2.5), Fraction(7, 2)):
        found = check_guidance(value)
        assert (found, type(found)) == (float(value), float)
    for value in (0.999, 0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"^guidance_scale: expected >= 1 and finite, got {value}$"):
            check_guidance(value)
    for other in (True, "3", None):
        with pytest.raises(TypeError, match=f"^guidance_scale: expected a number, got {other!r}$"):
            check_guidance(other)


def test_a_name_of_a_folder() -> None:
    for name in ("a", "a b", "...", "a..b", ".a"):
        check_folder_name(name, "table", "vae")
    for name in ("", " ", "a/b", "/a", "a/", ".", "..", "a\0b", "table", "vae"):
        told = f"name: expected a name usable for a folder, not 'table', not 'vae', got {name!r}"
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            check_folder_name(name, "table", "vae")


def test_every_size_that_is_named_is_asked() -> None:
    sizes = SimpleNamespace(a=1, b=MAX_SIZE, c=0, d=MAX_SIZE + 1)
    check_sizes(sizes, ("a", "b"))
    for name in ("c", "d"):
        told = rf"^{name}: expected a value in \[1, 1000000\], got {getattr(sizes, name)}$"
        with pytest.raises(ConfigError, match=told):
            check_sizes(sizes, ("a", name, "b"))


@dataclasses.dataclass(frozen=True)
class Part(Config):
    RENAMED: ClassVar[dict[str, str]] = {"number": "count"}

    count: int = 1
    share: float | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert isinstance(self.names, tuple), "values are of their types before they are compared"
        if self.count == 7:
            raise ConfigError("count", f"expected another than share={self.share}, got 7")


@dataclasses.dataclass(frozen=True)
class Whole(Config):
    title: str
    parts: tuple[Part, ...] = ()
    part: Part = dataclasses.field(default_factory=Part)
    free: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_sections_in_lists_are_named_by_their_place() -> None:
    values = {"title": "x", "parts": [{"count": 2}, {"count": "3"}]}
    with pytest.raises(ConfigError) as told:
        Whole.from_dict(values, where="")
    assert (told.value.name, told.value.problem) == ("parts[1].count", "expected a value of type int, got '3'")
    with pytest.raises(ConfigError, match=r"^here\.parts\[0\]: unknown key 'counts', expected any of \['count', "):
        Whole.from_dict({"title": "x", "parts": [{"counts": 2}]}, where="here")
    with pytest.raises(ConfigError, match=r"^config: missing key 'title'$"):
        Whole.from_dict({})
    with pytest.raises(ConfigError, match=r"^missing key 'title'$"):
        Whole.from_dict({}, where="")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"count": 7}, "expected another than share=None, got 7 (share: the default)"),
        ({"number": 7}, "expected another than share=None, got 7 (share: the default)"),
        ({"count": 7, "share": 0.5}, "expected another than share=0.5, got 7"),
    ],
)
def test_what_of_a_bound_is_a_default_is_said(part: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'part.count: {told}')}$"):
        Whole.from_dict({"title": "x", "part": part}, where="")


def test_a_whole_becomes_plain_values_and_itself_again() -> None:
    whole = Whole("x", [{"count": 2, "names": ["a"]}], {"share": 1}, {"a": (1, np.int8(2))})  # type: ignore[arg-type]
    plain = whole.to_dict()
    assert plain == {
        "title": "x", "parts": [{"count": 2, "share": None, "names": ["a"]}],
        "part": {"count": 1, "share": 1.0, "names": []}, "free": {"a": [1, 2]},
    }  # fmt: skip
    again = Whole.from_dict(plain)
    assert (again.parts, again.part, again.to_dict()) == (whole.parts, whole.part, plain)
    assert Whole.from_dict({"title": "x", "part": {"number": 5}}).part == Part(count=5)
    given = {"a": 1}
    assert Whole("x", free=given).free is not given


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json", "txt"])
def test_a_file_is_read_by_its_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text('{"title": "x", "part": {"count": 0x10, "share": 1e-3}}', encoding="utf-8")
    if suffix in ("yaml", "yml"):
        assert Whole.load(path) == Whole("x", part=Part(count=16, share=1e-3))
        path.write_text("a: -0o17\nb: +1_0\nc: -.5\nd: Null\ne: FALSE\nf: '1'\ng:\n", encoding="utf-8")
        assert read_values(path) == {"a": -15, "b": 10, "c": -0.5, "d": None, "e": False, "f": "1", "g": None}
    else:
        with pytest.raises(ValueError, match=rf"a\.{suffix}: expected valid JSON: "):
            Whole.load(path)
    with pytest.raises(FileNotFoundError):
        Whole.load(tmp_path / f"absent.{suffix}")
