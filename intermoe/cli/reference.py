"""The pages of documentation on the command and on recipes, from the program itself.

python -m intermoe.cli.reference docs
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from typer.main import get_command

from intermoe.cli import app
from intermoe.config import Config
from intermoe.files import write_text
from intermoe.train.trainers import TRAINERS

CONFIGS = Path(inspect.getfile(Config)).parent / "train" / "configs"

_COMMAND = """# The command

`--help` after a command says the same on the terminal. What is wrong with a value is told in one line by its option,
before any work.
"""

_RECIPES = """# Recipes

A recipe is a YAML or JSON file; `intermoe train RECIPE` reads it, from a path or by the name of one that ships.
`trainer` says what it trains, and every key is checked before work starts: one that is unknown or out of bounds is told
in one line, with its section. What a file leaves out has its default, and the run's folder keeps the whole as
`config.json`.
"""


def command_page() -> str:
    """Every command with its arguments and options, Markdown."""
    parts = [_COMMAND]
    for path, command in _commands(get_command(app), "intermoe"):
        rows = [
            (_name(parameter), parameter.help or "", _default(parameter))
            for parameter in command.params
            if parameter.name != "help"
        ]
        parts += [f"## {path}\n", f"{_text(command.help or '')}\n"]
        if rows:
            parts.append(_table(("option", "what", "default"), rows))
    return "\n".join(parts)


def recipes_page() -> str:
    """Every recipe that ships, and every section with its keys, Markdown."""
    shipped = []
    for file in sorted(CONFIGS.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        remark = " ".join(line.lstrip("# ") for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
        sentence = remark.split(". ")[0].rstrip(".") + "."
        shipped.append((f"`{file.stem}`", f"`{yaml.safe_load(text)['trainer']}`", sentence))
    parts = [_RECIPES, "## Those that ship\n", _table(("name", "trainer", "what"), shipped)]
    sections: dict[type[Config], None] = {}
    for name in TRAINERS:
        parts += [f"## `trainer: {name}`\n", *_section(TRAINERS[name].config, sections)]
    parts.append("## Sections\n")
    described: list[type[Config]] = []
    while rest := [section for section in sections if section not in described]:
        described.append(rest[0])
        parts += [f"### {rest[0].__name__}\n", *_section(rest[0], sections)]
    return "\n".join(parts)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The commands below, each with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from _commands(below, f"{path} {name}")


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    value = parameter.default
    value = value.value if isinstance(value, enum.Enum) else value
    if value is None or value == "" or callable(value):
        return ""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"`{value}`"


def _section(kind: type[Config], sections: dict[type[Config], None]) -> list[str]:
    """What a class of configuration says of itself and its keys; classes of its own go into ``sections``."""
    hints, rows = get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        plain = get_origin(hint) is None and isinstance(hint, type)
        if plain and issubclass(hint, Config):
            sections.setdefault(hint)
            rows.append(
                (f"`{field.name}`", f"section [{hint.__name__}](#{hint.__name__.lower()})", _apart(field, hint))
            )
        else:
            told = hint.__name__ if plain else str(hint).replace("typing.", "")
            rows.append((f"`{field.name}`", f"`{told}`", _written(field)))
    return [f"{_text(inspect.getdoc(kind) or '')}\n", _table(("key", "kind", "default"), rows)]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _apart(field: dataclasses.Field[Any], section: type[Config]) -> str:
    """The keys of a section that have other defaults here than the section itself."""
    here = _default_of(field)
    names = [key.name for key in dataclasses.fields(section) if getattr(here, key.name) != _default_of(key)]
    return ", ".join(f"`{name}: {getattr(here, name)}`" for name in names)


def _written(field: dataclasses.Field[Any]) -> str:
    """A default as YAML has it."""
    value = _default_of(field)
    if value is dataclasses.MISSING:
        return "needed"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10) + '...' + chr(10)).strip()}`"


def _text(words: str) -> str:
    """Words of a docstring as Markdown."""
    return inspect.cleandoc(words).replace("\b", "").replace("``", "`").replace("<", "&lt;").strip()


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> str:
    lines = [head, ("---",) * 3, *rows]
    return (
        "\n".join("| " + " | ".join(_text(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
    )


PAGES = {"command.md": command_page, "recipes.md": recipes_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        write_text(Path(sys.argv[1], name), page())
