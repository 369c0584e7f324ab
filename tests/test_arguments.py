"""No function below the command line takes more than ten arguments: what travels together is one named thing."""

from __future__ import annotations

import ast
from pathlib import Path

import intermoe
from intermoe import kernels

MOST = 10
EXEMPT = {
    # The options of the block are public names, of which a caller gives the few that he changes, as of torch's modules.
    "intermoe/nn/moe.py: InterMoEBlock.__init__",
}


def signatures(folder: Path, name: str) -> dict[str, int]:
    """Arguments of every function of a package, but for the command's and for compiled kernels, which take arrays."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if folder / "cli" in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {
            id(node): kind.name for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for node in kind.body
        }
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            own = f"{classes[id(node)]}.{node.name}" if id(node) in classes else node.name
            found[f"{name}/{path.relative_to(folder)}: {own}"] = len(
                [each for each in names if each not in ("self", "cls")]
            )
    return found


def test_at_most_ten_arguments() -> None:
    counts = signatures(Path(intermoe.__path__[0]), "intermoe") | signatures(Path(kernels.__path__[0]), "kernels")
    assert len(counts) > 1000
    assert {name for name, count in counts.items() if count > MOST} == EXEMPT
