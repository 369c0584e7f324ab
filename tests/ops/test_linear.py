"""The layers' product: torch's, or the native backend's where nothing is differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from intermoe import backends
from intermoe.kernels.native import products
from intermoe.nn.layers import Linear
from intermoe.ops.linear import linear


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    native = backends.load("native")
    calls: list[int] = []
    called = native.linear
    monkeypatch.setattr(native, "linear", lambda *arguments: calls.append(1) or called(*arguments))
    monkeypatch.setattr(products, "choice", lambda *_: "own")
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 33), (33,), (40, 33)])
def test_linear(native_calls, dtype, with_bias: bool, shape, relative_error, tolerance) -> None:
    torch.manual_seed(0)
    layer, x = Linear(33, 47, bias=with_bias).to(dtype), torch.randn(shape).to(dtype)
    bias = layer.bias.double() if with_bias else None
    expected = nn.functional.linear(x.double(), layer.weight.double(), bias)
    with torch.no_grad():
        for count in (1, 2, 3):  # unpacked, packed, kept
            out = layer(x)
            assert len(native_calls) == count
            assert out.shape == expected.shape
            assert out.dtype == dtype
            assert relative_error(out, expected) <= tolerance(dtype)
        for strided in (
            torch.stack([x, x], dim=-1)[..., 0],  # elements apart
            torch.cat([x, x], dim=-1)[..., :33],  # rows apart
            x.movedim(0, -1).contiguous().movedim(-1, 0),  # the first dimension last in memory
            x[..., :1, :].expand(x.shape) if x.dim() > 1 else x,  # one row for all
        ):
            wanted = layer(strided.contiguous())
            assert torch.equal(layer(strided), wanted)


def test_torch_where_it_is_asked_for(native_calls) -> None:
    layer, x = Linear(8, 8), torch.randn(4, 8)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)  # gradients
    with torch.no_grad():
        with backends.use("reference"):
            assert torch.equal(layer(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer(x[:0]).shape == (0, 8)
        assert torch.vmap(layer)(x).shape == (4, 8)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 4 * 8 * 8
        assert linear(x, layer.weight.detach()).shape == (4, 8)
        assert layer.double()(x.double()).dtype == torch.float64
    assert not native_calls
    with pytest.raises(RuntimeError):
        layer.float()(torch.randn(4, 9))


@pytest.mark.parametrize("needs", ["x", "weight", "bias"])
def test_torch_where_one_alone_is_differentiated(native_calls, needs: str) -> None:
    given = {"x": torch.randn(4, 8), "weight": nn.Parameter(torch.randn(8, 8)), "bias": nn.Parameter(torch.randn(8))}
    for name, value in given.items():
        value.requires_grad_(name == needs)
    linear(**given).sum().backward()
    assert given[needs].grad is not None
    assert not native_calls
    given[needs].requires_grad_(False)
    linear(**given)
    assert len(native_calls) == 1


def test_torch_for_a_bias_that_is_no_dense_parameter_of_the_type(native_calls) -> None:
    x, weight = torch.randn(4, 8), nn.Parameter(torch.randn(8, 8))
    strided = nn.Parameter(torch.randn(16)[::2])
    with torch.no_grad():
        for bias in (torch.randn(8), strided):
            torch.testing.assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias))
        with pytest.raises(RuntimeError):
            linear(x, weight, nn.Parameter(torch.randn(8).double()))
        assert not native_calls
        for other in (x.double(), x[:, :7]):
            with pytest.raises(RuntimeError):
                linear(other, weight)
