"""What other projects' kernels are given, and where they are not asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.benchmarks import external
from intermoe.benchmarks.forms import Inputs, draw
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops.moe import moe


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


SHAPE = Shape(12, dim=8, experts=3, width=4, capacity=1.5, rows=2)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the other projects' modules and functions were given, and what was asked of the card before."""
    asked: list[Any] = []

    class Double(nn.Module):
        """Each number twice, through a weight of its own."""

        def __init__(self, *sizes: Any, **options: Any) -> None:
            super().__init__()
            asked.append((*sizes, options))
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor, *more: Tensor) -> Any:
            asked.append((x, *more))
            return (x * self.weight, "more") if x.ndim == 3 else x * self.weight

    class Sonic(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            asked.append(options)
            e, d, f = SHAPE.experts, SHAPE.dim, SHAPE.width
            self.c_fc, self.c_proj = nn.Linear(1, 1), nn.Linear(1, 1)
            self.c_fc.weight = nn.Parameter(torch.randn(e, 2 * f, d))
            self.c_proj.weight = nn.Parameter(torch.randn(e, d, f))
            self.stream_id = 77

    def general(tokens: Tensor, gates: Tensor, token: Tensor, expert: Tensor, up: Tensor, *rest: Any) -> Any:
        """Its function in plain torch: weights are (2F, D, E) and (D, F, E), pairs sorted by token."""
        no_bias, down, none, *options = rest
        asked.append((no_bias, none, *options))
        assert token.dtype == expert.dtype == torch.int32
        assert token.tolist() == sorted(token.tolist())
        out = torch.zeros_like(tokens)
        for gate, t, e in zip(gates, token.tolist(), expert.tolist(), strict=True):
            halves = (up[..., e] @ tokens[t]).chunk(2)
            out[t] += gate.to(out.dtype) * (down[..., e] @ (nn.functional.silu(halves[0]) * halves[1]))
        return out, "more"

    def fused(*arguments: Tensor) -> Tensor:
        asked.append(arguments)
        return arguments[0] * 2

    kinds = SimpleNamespace(SWIGLU="swiglu")
    for name, module in {
        "scattermoe.mlp": {"GLUMLP": Double},
        "megablocks.layers.arguments": {"Arguments": lambda **options: options},
        "megablocks.layers.dmoe": {"dMoE": Double},
        "sonicmoe": {"MoE": Sonic},
        "sonicmoe.enums": {"ActivationType": kinds},
        "sonicmoe.functional": {"moe_general_routing_inputs": general},
        "liger_kernel.ops": {"LigerFusedMoEFunction": SimpleNamespace(apply=fused)},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**module))  # type: ignore[arg-type]
    monkeypatch.setattr(
        external, "_needs", lambda name, x, capability, half=False: asked.append((name, capability, half))
    )
    return asked


def same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_other_projects_are_given(dtype: torch.dtype, given: list[Any]) -> None:
    """Sizes, the device's and storage type's weights, and what they are called with: one expert per token."""
    drawn, other = (draw(SHAPE, dtype, torch.device("cpu"), seed) for seed in range(2))
    weight, index = external._first_choice(other)

    def of(name: str) -> Tensor:
        given.clear()
        call, weights = external.ADAPTERS[name](SHAPE, drawn)
        assert {w.dtype for w in weights} <= {dtype}
        assert len(weights) == (0 if name == "liger-kernel" else 1)
        return call(other)

    assert torch.equal(of("scattermoe"), other.hidden * 2)
    assert given[:2] == [("scattermoe", (8, 0), False), (8, 4, 3, 1, {})]
    assert same(given[2], (other.hidden, weight, index))

    assert torch.equal(of("megablocks"), other.hidden[None] * 2)
    needs, (options, none), called = given
    assert (needs, none) == (("megablocks", (8, 0), True), {})
    assert options == {
        "hidden_size": 8, "ffn_hidden_size": 4, "moe_num_experts": 3, "moe_top_k": 1, "mlp_type": "glu",
        "mlp_impl": "grouped", "activation_fn": nn.functional.silu, "bias": False, "return_bias": False,
        "fp16": dtype == torch.float16, "bf16": dtype == torch.bfloat16, "device": torch.device("cpu"),
    }  # fmt: skip
    assert same(called, (other.hidden[None],))

    assert torch.equal(of("liger-kernel"), other.hidden * 2)
    assert given[0] == ("liger-kernel", (8, 0), False)
    assert same(given[1], (other.hidden, other.w_gate_up, other.w_down, index.int(), weight))


@pytest.mark.parametrize("gradients", [True, False])
def test_the_block_with_weights_of_sonic_moe(
    gradients: bool, given: list[Any], relative_error: Callable[..., float]
) -> None:
    """Its pairs are the block's own selection, so the result is the block's with these weights."""
    drawn, other = (draw(SHAPE, torch.float32, torch.device("cpu"), seed) for seed in range(2))
    call, (up, down) = external.ADAPTERS["sonic-moe"](SHAPE, drawn)
    with torch.set_grad_enabled(gradients):
        found = call(other)
    needs, options, called = given
    assert needs == ("sonic-moe", (9, 0), True)
    assert options == {
        "num_experts": 3, "num_experts_per_tok": 1, "hidden_size": 8, "intermediate_size": 4,
        "activation_function": "swiglu", "add_bias": False, "std": 0.02,
    }  # fmt: skip
    assert called == (None, None, 3, 77, "swiglu", not gradients)
    with torch.no_grad():
        expected = moe(*other._replace(w_gate_up=up, w_down=down).steps(), backend="reference").out
    assert relative_error(found, expected) < 1e-5


def test_weights_of_sonic_moe_are_of_the_storage_type(given: list[Any]) -> None:
    _, weights = external.ADAPTERS["sonic-moe"](SHAPE, draw(SHAPE, torch.bfloat16, torch.device("cpu")))
    assert [weight.dtype for weight in weights] == [torch.bfloat16] * 2
