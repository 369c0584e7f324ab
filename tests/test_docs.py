"""The documentation's code runs, top to bottom, and the weights it converts compute what they did."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import intermoe

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run(page: str) -> dict[str, Any]:
    """The names that the page's Python blocks define, run one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks, page
    names: dict[str, Any] = {"__name__": "docs"}
    exec("\n".join(blocks), names)
    return names


def test_every_public_name_has_an_entry() -> None:
    entries = [
        line.removeprefix("::: ")
        for page in (DOCS / "api").glob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    ]
    for name in set(intermoe.__all__) - {"__version__"}:
        assert any(entry.split(".")[-1] == name for entry in entries), name


def test_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run("replace.md")
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(names["loaded"].eval()(x), names["encoder"].eval()(x))
    assert names["out"].shape == x.shape
    assert (tmp_path / "routing.png").stat().st_size > 1000


def test_intermask() -> None:
    torch.manual_seed(0)
    names = run("intermask.md")
    assert names["motion"].shape == (2, 60, 262)
    assert torch.equal(names["reaction"][:, 0], names["codes"][:, 0])


@pytest.mark.filterwarnings("ignore:control. model")
def test_control() -> None:
    names = run("control.md")
    assert names["result"].joints.shape == (1, 2, 60, 22, 3)
    assert not torch.equal(names["result"].joints[0, 1], names["filled"].joints[0, 1])


def test_the_recipe_of_the_page_on_control_is_one() -> None:
    from intermoe.train.config import LevelMixConfig

    (block,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "control.md").read_text(encoding="utf-8"), re.M | re.DOTALL)
    values = yaml.safe_load(block)
    assert LevelMixConfig.from_dict(values["levels"]).mixed


def top_k_reference(x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """Softmax over all experts, the top_k of each token, not renormalised; down (E, D, F)."""
    gates, chosen = (x @ router.T).softmax(dim=-1).topk(top_k, dim=-1)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, e in zip(gates[token], chosen[token], strict=True):
            inner = torch.nn.functional.silu(gate[e] @ x[token]) * (up[e] @ x[token])
            out[token] += weight * (down[e] @ inner)
    return out


def test_migration(relative_error: Any) -> None:
    torch.manual_seed(0)
    names = run("migration.md")
    x, router = torch.randn(10, 16), torch.randn(4, 16)
    gate, up, down = torch.randn(4, 24, 16), torch.randn(4, 24, 16), torch.randn(4, 16, 24)
    expected = top_k_reference(x, router, gate, up, down, 2)
    stacked = (gate.reshape(-1, 16), up.reshape(-1, 16), down.transpose(1, 2).reshape(-1, 16))
    block = names["from_megablocks"](router, *stacked, num_experts=4, top_k=2)
    assert relative_error(block(x[None])[0], expected) <= 1e-5
    block = names["from_scattermoe"](router, torch.cat([up, gate], dim=1), down, top_k=2)
    assert relative_error(block(x[None])[0], expected) <= 1e-5


def test_systems() -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    names = run("systems.md")
    assert names["motion"].shape == (1, 2, 90, 262)
    layers = names["network"].layers
    assert all(type(layer.feed_forward.network).__name__ == "MoEFeedForward" for layer in layers)
