"""What InterMoEBlock is built of and called with: what it refuses, by name, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intermoe import InterMoEBlock, backends
from intermoe.ops import moe as operation


def small(**changes: object) -> InterMoEBlock:
    return InterMoEBlock(**{"dim": 16, "num_experts": 4, "expert_dim": 12, "cond_dim": 8} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "fast"}, "backend: expected one of .*, got unknown backend 'fast'"),
        ({"dim": 0}, r"dim: expected a value in \[1, 1000000\], got 0"),
        ({"num_experts": 0}, "num_experts"),
        ({"cond_dim": 0}, "cond_dim"),
        ({"capacity": 5.0}, "capacity"),
        ({"capacity": 0.0}, "capacity"),
        ({"fusion": "product"}, "fusion: expected one of .*'product'"),
        ({"alpha": 1.5}, "alpha"),
        ({"fusion": "learned", "alpha": 1.0}, "alpha: expected a value inside"),
        ({"norm": "batch"}, "norm: expected one of"),
        ({"bias_init": 0.0}, "bias_init"),
        ({"bias_rate": -1.0}, "bias_rate"),
        ({"num_shared_experts": -1}, "num_shared_experts"),
        ({"bias_rate": float("inf")}, "bias_rate: expected a finite number, got inf"),
        ({"capacity": "1"}, "capacity: expected a finite number, got '1'"),
        ({"alpha": None}, "alpha: expected a finite number, got None"),
        ({"max_pairs": 2**70}, "max_pairs: expected a whole number of 64 bits"),
    ],
)
def test_bad_construction_is_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 16.0),
        ("dim", True),
        ("num_experts", "4"),
        ("expert_dim", None),
        ("cond_dim", 8.0),
        ("top_k", 1.0),
        ("num_shared_experts", 1.5),
        ("max_pairs", 1.5),
        ("recompute", "yes"),
        ("half_sums", 1),
    ],
)
def test_values_of_another_kind_are_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected (an integer|True or False), got {value!r}$"):
        small(**{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    block = small(num_experts=np.int64(4), capacity=np.float32(1.5), bias_init=np.float64(-0.25), top_k=None)
    assert type(block.num_experts) is int
    assert (block.capacity, block.bias_init) == (1.5, -0.25)


@pytest.mark.parametrize("bias", [torch.tensor([0.1, float("nan"), 0, 0]), torch.zeros(4, dtype=torch.int64)])
@pytest.mark.parametrize("assign", [False, True])
def test_a_bias_that_is_none_is_not_loaded(bias: torch.Tensor, assign: bool) -> None:
    block = small()
    with pytest.raises(RuntimeError, match="selection_bias: expected finite floating-point numbers, got"):
        block.load_state_dict({**block.state_dict(), "selection_bias": bias}, assign=assign)


@pytest.mark.filterwarnings("ignore")
def test_a_recording_of_calls_is_told() -> None:
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    arguments = (torch.randn(2, 5, 16), torch.randn(2, 8))
    block = small(backend="native").requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"native: expected a call that torch\.jit\.trace does not record, got one"):
        torch.jit.trace(block, arguments)


def test_experts_are_spread_over_a_mesh_alone() -> None:
    with pytest.raises(TypeError, match="mesh: expected a DeviceMesh, got 'cpu'"):
        small().distribute("cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.zeros(2, 5, 15), torch.zeros(2, 8)),
            ValueError,
            r"hidden: expected shape \(B, T, 16\), got \(2, 5, 15\)",
        ),
        ((torch.zeros(2, 5, 16).long(), torch.zeros(2, 8)), TypeError, "hidden: expected a floating-point dtype, got"),
        ((torch.zeros(2, 5, 16) + 0j, torch.zeros(2, 8)), TypeError, "hidden: expected a floating-point dtype, got"),
        ((torch.zeros(2, 5, 16),), ValueError, "condition: expected a tensor"),
        (
            (torch.zeros(2, 5, 16), np.zeros((2, 8))),
            TypeError,
            r"condition: expected a tensor of shape \(2, 8\), got nd",
        ),
        (
            (torch.zeros(2, 5, 16), torch.zeros(2, 8).long()),
            TypeError,
            "condition: expected a floating-point dtype, got",
        ),
        (
            (torch.zeros(2, 5, 16).to_sparse(), torch.zeros(2, 8)),
            TypeError,
            "hidden: expected a dense tensor, got one of",
        ),
        (
            (torch.nested.nested_tensor([torch.zeros(3, 16)] * 2, layout=torch.jagged), torch.zeros(2, 8)),
            TypeError,
            r"hidden: expected a tensor of shape .* got a nested one; pad it",
        ),
        (
            (torch.zeros(2, 5, 16), torch.zeros(2, 8, device="meta")),
            ValueError,
            "condition: expected a tensor on cpu, where the block is, got one on meta",
        ),
        ((torch.zeros(2, 5, 16), torch.zeros(3, 8)), ValueError, r"condition: expected shape \(2, 8\)"),
        ((torch.zeros(2, 5, 16), torch.zeros(2, 2, 8)), ValueError, r"condition: .* K dividing T=5, got K=2"),
        ((torch.zeros(2, 5, 16), torch.zeros(2, 0, 8)), ValueError, r"condition: .* K dividing T=5, got K=0"),
        ((torch.zeros(2, 5, 16), torch.zeros(2, 5, 7)), ValueError, r"condition: expected shape \(2, K, 8\)"),
        ((torch.zeros(2, 5, 16), torch.zeros(2, 8), torch.ones(2, 5)), TypeError, "mask: expected dtype torch.bool"),
        ((torch.zeros(2, 5, 16), torch.zeros(2, 8), torch.ones(2, 4) > 0), ValueError, "mask: expected shape"),
    ],
)
def test_bad_call_is_named(arguments, error, message) -> None:
    for backend in ("reference", None):
        with pytest.raises(error, match=message):
            small(backend=backend)(*arguments)


def test_condition_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="condition: expected None"):
        small(cond_dim=None)(torch.zeros(2, 5, 16), torch.zeros(2, 8))


def test_half_sums_are_of_a_backend_that_has_them_in_float16_without_gradients() -> None:
    pytest.importorskip("triton")
    operation._check_half_sums("triton", torch.float16, False)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with pytest.raises(TypeError, match=rf"^half_sums: expected experts in torch.float16 .*, got {dtype}"):
            operation._check_half_sums("triton", dtype, False)
    with pytest.raises(RuntimeError, match=r"^half_sums: for inference only"):
        operation._check_half_sums("triton", torch.float16, True)
    for backend in ("reference", "native"):
        with pytest.raises(ValueError, match=rf"^half_sums: expected a backend that has them, got '{backend}'"):
            operation._check_half_sums(backend, torch.float16, False)


def test_an_unusable_backend_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = backends.Status("native", False, (), "the library was not built", "install g++")
    monkeypatch.setattr(backends, "_status", lambda name: broken)
    with pytest.raises(RuntimeError, match=r"backend: expected a usable backend, got 'native'.*\n.*not built"):
        small(backend="native")
