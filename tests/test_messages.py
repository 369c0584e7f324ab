"""A refused value is told in one form, ``name: expected …, got …``, wherever it is refused."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import intermoe
from intermoe import benchmarks, kernels

OTHER_FORMS = ("missing key", "unexpected keys", "unknown key", "is there twice", "no such file", "not as it was ")
"""Of what is read: what is not there, what should not be, and what has changed since it was written."""


def told_of(call: ast.Call) -> str:
    """The words of a message, its values as ``{}`` and another error's own words as ``{error}``."""
    parts: list[str] = []
    for node in ast.walk(call.args[0]) if call.args else ():
        if isinstance(node, ast.JoinedStr):
            for value in node.values:
                if isinstance(value, ast.FormattedValue):
                    names = {each.id for each in ast.walk(value.value) if isinstance(each, ast.Name)}
                    parts.append("{error}" if "error" in names else "{}")
                elif isinstance(value, ast.Constant):
                    parts.append(str(value.value))
            break
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts.append(node.value)
            break
    return "".join(parts)


PLACES = re.compile(r"(\{\}|[\s:.,\[\]]|statistics|known|targets|file|split|item|entry|load|--\w+)*(\{error\}|\{\})")
"""What another error says, after the place at which it was said."""


def is_told(message: str) -> bool:
    """Whether it says what was expected and what came, or leaves that to another error."""
    if PLACES.fullmatch(message) or any(form in message for form in OTHER_FORMS):
        return True
    return "expected" in message and ("got" in message or "{error}" in message)


def untold(source: str) -> list[tuple[int, str]]:
    """Line and message of every ``ValueError`` and ``TypeError`` that is raised in another form."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            message = told_of(node.exc) if node.exc.func.id in ("ValueError", "TypeError") else ""
            if message and not is_told(message):
                found.append((node.lineno, message))
    return found


def test_every_refusal_says_what_was_expected_and_what_came() -> None:
    found, files = {}, 0
    for package in (intermoe, kernels, benchmarks):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            files += 1
            for line, message in untold(path.read_text(encoding="utf-8")):
                found[f"{package.__name__}/{path.relative_to(root)}:{line}"] = message
    assert files > 300
    assert not found


def test_another_form_would_be_seen() -> None:
    assert untold('raise ValueError(f"dim: must be odd, got {dim}")') == [(1, "dim: must be odd, got {}")]
    assert untold('raise TypeError("dim: expected a number")') == [(1, "dim: expected a number")]
    assert not untold('raise ValueError(f"dim: expected >= 1, got {dim}")')
    assert not untold('raise ValueError(f"{path}: expected JSON: {error}")')
    assert not untold('raise ValueError(f"{path}: {error}")')
