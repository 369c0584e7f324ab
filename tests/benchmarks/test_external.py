"""What other projects' kernels are given, and where they are not asked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import external
from intermoe.benchmarks.forms import Inputs, draw
from intermoe.benchmarks.harness.work import Shape


def test_a_token_goes_to_its_likeliest_expert() -> None:
    inputs = draw(Shape(2, dim=3, experts=3, width=2, rows=1), torch.float32, torch.device("cpu"))
    x = inputs._replace(
        hidden=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]).bfloat16(),
        router_weight=torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [0.0, 0.0, 1.0]]),
    )
    weight, index = external._first_choice(x)
    assert index.tolist() == [[1], [2]]
    e = torch.tensor(1.0).exp()
    expected = torch.stack([e / (e + 2), e**2 / (e**2 + 1 + e**-2)])[:, None]
    torch.testing.assert_close(weight, expected.bfloat16())


def on_card(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> Any:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return SimpleNamespace(hidden=SimpleNamespace(device=torch.device("cuda"), dtype=inputs.hidden.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_project_is_asked_where_it_serves(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(Shape(4, dim=8, experts=2, width=4, rows=1), dtype, torch.device("cpu"))
    refused: Callable[..., Any] = lambda what: pytest.raises(RuntimeError, match=f"^it {what}")  # noqa: E731
    with refused("needs a CUDA device"):
        external._needs("it", inputs, (8, 0))
    card = on_card(inputs, monkeypatch, (8, 9))
    external._needs("it", card, (8, 9))
    with refused("needs compute capability 9.0 or newer"):
        external._needs("it", card, (9, 0))
    if dtype == torch.float32:
        with refused("serves half types only"):
            external._needs("it", card, (8, 0), half=True)
    else:
        external._needs("it", card, (8, 0), half=True)
