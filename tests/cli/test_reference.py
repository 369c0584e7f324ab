"""The pages on the command and on recipes say what the program does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from intermoe.cli import app
from intermoe.cli.reference import PAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_that_of_the_program(name: str) -> None:
    told = (DOCS / name).read_text(encoding="utf-8")
    assert told == PAGES[name](), "python -m intermoe.cli.reference docs"


def test_every_command_and_recipe_is_there() -> None:
    page = (DOCS / "command.md").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():
        for below in getattr(command, "commands", {None: None}):
            assert f"## intermoe {name} {below}\n" in page if below else f"## intermoe {name}\n" in page
    assert "| `--camera` | Of videos and pages: side, front, top or follow. | `side` |" in page
    recipes = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for file in (DOCS.parent / "intermoe" / "train" / "configs").glob("*.yaml"):
        assert f"| `{file.stem}` |" in recipes
    assert "| `learning_rate` | `float` | `0.0002` |" in recipes
    assert "| `text` | section [TextConfig](#textconfig) | `output_dim: 512` |" in recipes
