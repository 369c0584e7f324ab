"""Names are resolved when asked for; what is not there, or there already, is an error that says what is."""

from __future__ import annotations

import math

import pytest

from intermoe.registry import Registry, exports


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    numbers: Registry[float] = Registry("number", {"pi": "math:pi", "none": "no_such_module:x"})
    assert numbers["pi"] == math.pi
    assert [*numbers] == ["pi", "none"]
    assert "pi" in numbers
    assert "tau" not in numbers
    assert len(numbers) == 2
    numbers.add("tau", "math:tau")
    assert numbers["tau"] == math.tau
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        numbers["none"]


def test_a_name_that_was_found_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: Registry[float] = Registry("number", {"pi": "math:pi"})
    found = numbers["pi"]
    monkeypatch.setattr(math, "pi", 3)
    assert numbers["pi"] == found


def test_unknown_and_taken_names_are_told() -> None:
    numbers: Registry[float] = Registry("number", {"pi": "math:pi", "tau": "math:tau"})
    with pytest.raises(ValueError, match="number: expected one of pi, tau, got 'e'"):
        numbers["e"]
    with pytest.raises(ValueError, match="number: expected a free name, got 'pi', taken by math:pi"):
        numbers.add("pi", "math:tau")


def test_public_names_are_imported_on_first_use() -> None:
    find = exports("email", {"Message": "message", "absent": "message"})
    assert find("Message").__module__ == "email.message"
    with pytest.raises(AttributeError, match="module 'email' has no attribute 'nothing'"):
        find("nothing")
    with pytest.raises(AttributeError, match="absent"):
        find("absent")
