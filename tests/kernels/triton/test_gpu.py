"""What only a GPU can tell: nothing waits for the host in the static mode, graphs, late overflows, all dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from intermoe import InterMoEBlock, backends
from intermoe.ops.moe import Experts, Route, Select, moe, raise_on_overflow

STATUS = backends.available()["triton"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in STATUS.devices, reason=f"triton does not serve CUDA here: {STATUS.reason}"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def synchronisation_mode() -> Iterator[None]:
    """The test may forbid host synchronisations; they are allowed again when it ends."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def block(**changes: object) -> InterMoEBlock:
    made = InterMoEBlock(
        **{"dim": 64, "num_experts": 8, "expert_dim": 48, "cond_dim": 32, "backend": "triton"} | changes
    )
    torch.nn.init.normal_(made.motion_router, std=0.125)
    return made.cuda()


def inputs(batch: int = 4, frames: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.arange(frames, device="cuda") < frames - 5
    hidden = torch.randn(batch, frames, 64, device="cuda")
    return hidden, torch.randn(batch, 32, device="cuda"), mask.expand(batch, frames)


@pytest.mark.parametrize("routing", ["dynamic", "token_choice", "expert_choice"])
@pytest.mark.parametrize(("frames", "max_pairs"), [(30, None), (300, 9600)], ids=["small pool", "limit"])
@pytest.mark.usefixtures("synchronisation_mode")
def test_a_training_step_never_waits(routing: str, frames: int, max_pairs: int | None) -> None:
    made = block(routing=routing, top_k=2 if routing == "token_choice" else None, max_pairs=max_pairs)
    values = inputs(frames=frames)

    def step() -> None:
        out, balance = made(*values, balance=True)
        (out.square().sum() + balance).backward()
        made.update_selection_bias()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step()


@pytest.mark.parametrize("routing", ["dynamic", "token_choice", "expert_choice"])
def test_inference_in_a_graph(routing: str) -> None:
    made = block(routing=routing, top_k=2 if routing == "token_choice" else None).eval()
    hidden, condition, mask = inputs()
    with torch.no_grad():
        expected = made(hidden, condition, mask)
        static = torch.zeros_like(hidden)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            made(static, condition, mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = made(static, condition, mask)
    static.copy_(hidden)
    graph.replay()
    assert torch.equal(out, expected)
    raise_on_overflow()


def test_an_overflow_is_nan_until_it_is_raised_with_the_numbers() -> None:
    made, values = block(max_pairs=7), inputs()
    needed = int(made.chosen_pairs(*values).sum())
    assert made(*values).isnan().any()
    with pytest.raises(RuntimeError, match=rf"max_pairs: {needed} .* were selected but only 7 allocated"):
        raise_on_overflow()
    raise_on_overflow()
    made(*values)
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="only 7 allocated"):
        made.update_selection_bias()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_pairs", [None, 4800])
def test_every_gradient_agrees_with_float64(
    dtype: torch.dtype, max_pairs: int | None, relative_error, tolerance
) -> None:
    def drawn(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device="cuda") * std).to(dtype)

    values = [
        drawn(600, 96), drawn(8, 96, std=0.1).float(), torch.randn(4, 8, device="cuda"), drawn(4, 96, std=0.2),
        drawn(4, 96, std=0.2), torch.full((8,), -0.5, device="cuda"), drawn(8, 128, 96, std=0.1),
        drawn(8, 96, 64, std=0.125),
    ]  # fmt: skip
    chosen = torch.rand(600, 8, device="cuda") > 0.7  # so that rounding moves no pair over the threshold
    wide = [value.double().requires_grad_() for value in values]
    experts = Experts(*wide[6:])
    expected = moe(Route(*wide[:5]), Select(None, chosen), experts, backend="reference").out
    leaves = [value.clone().requires_grad_() for value in values]
    select = Select(None, chosen, max_pairs=max_pairs)
    found = moe(Route(*leaves[:5]), select, Experts(*leaves[6:]), backend="triton").out
    grad = torch.randn_like(expected)
    expected.backward(grad)
    found.backward(grad.to(found.dtype))
    bound = tolerance(dtype)
    assert relative_error(found.cpu(), expected.cpu()) < bound
    for i, (leaf, other) in enumerate(zip(leaves, wide, strict=True)):
        if i != 5:
            assert relative_error(leaf.grad.cpu(), other.grad.cpu()) < bound, i


def test_half_sums_agree_with_float64(relative_error) -> None:
    made = block(half_sums=True).eval().half()
    hidden, condition, mask = inputs()
    with torch.no_grad():
        out = made(hidden.half(), condition.half(), mask)
        made.half_sums, made.backend = False, "reference"
        expected = made.double()(hidden.half().double(), condition.half().double(), mask)
    assert relative_error(out.cpu(), expected.cpu()) < 4 * torch.finfo(torch.float16).eps * 64**0.5


def test_tune_finds_a_tile_that_runs() -> None:
    from intermoe.kernels.triton.tune import Problem, tune

    problem = Problem(300, 8, 256, 256, torch.bfloat16, torch.device("cuda"))
    found = tune(problem, "down")
    assert found.time <= found.shipped_time


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one(relative_error) -> None:
    made, values = block(), inputs()
    expected = made(*values)
    other = made.to("cuda:1")(*(value.to("cuda:1") for value in values))
    assert relative_error(other.cpu(), expected.cpu()) < 1e-6
