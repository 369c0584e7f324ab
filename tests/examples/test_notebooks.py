"""The notebooks run from top to bottom, cell by cell, in a folder of their own."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "examples"


def run(name: str) -> dict[str, Any]:
    """What the cells leave; the value of each cell's last line is in ``Out``, as in a notebook."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    there: dict[str, Any] = {"__name__": "__main__", "Out": []}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "what a cell printed stays out of the repository"
        tree = ast.parse("".join(cell["source"]), filename=f"{name}, cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{name}, cell {number}", "exec"), there)
        if isinstance(last, ast.Expr):
            there["Out"].append(eval(compile(ast.Expression(last.value), f"{name}, cell {number}", "eval"), there))
    return there


def test_generate_look_and_take_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("viser", reason="the notebook shows a page of figures")
    monkeypatch.chdir(tmp_path)
    shape, page, names, difference = run("generate.ipynb")["Out"]
    assert shape == (2, 2, 90, 22, 3)
    assert page._repr_html_().startswith("<iframe")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(names) == 7
    assert difference < 1e-3


def test_the_block_in_a_model_learns() -> None:
    there = run("block.ipynb")
    shape, (first, last), (tokens, total) = there["Out"][-3:]
    assert shape == (6, 40, 32)
    assert last < 0.8 * first
    assert total == 175
    assert ((tokens >= 0) & (tokens <= total)).all()
