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


# tokens, experts, dim, expert_dim, rows: and why
SHAPES = [
    (600, 8, 96, 64, 4),  # whole tiles
    (66, 7, 97, 63, 6),  # odd everything
    (600, 8, 768, 1024, 4),  # the published model's widths
    (256, 64, 128, 64, 1),  # many experts
]


@pytest.fixture
def products() -> Iterator[None]:
    """The test may choose how float32 products are computed."""
    yield
    torch.set_float32_matmul_precision("highest")


def drawn(shape: tuple[int, ...], dtype: torch.dtype, bias: float = -0.5) -> list[Tensor]:
    """Tensors of ``Route``, the biases, and weights of ``Experts``."""
    tokens, experts, dim, width, rows = shape

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return (torch.randn(*size, device="cuda") * std).to(dtype)

    return [
        normal(tokens, dim), normal(experts, dim, std=dim**-0.5).float(), torch.randn(rows, experts, device="cuda"),
        normal(rows, dim, std=0.2), normal(rows, dim, std=0.2), torch.full((experts,), bias, device="cuda"),
        normal(experts, 2 * width, dim, std=dim**-0.5), normal(experts, dim, width, std=width**-0.5),
    ]  # fmt: skip


def differentiated(values: list[Tensor], select: Select, grad: Tensor | None = None, backend: str = "triton"):
    """The output, and the gradients of everything but the biases."""
    leaves = [value.clone().requires_grad_(i != 5) for i, value in enumerate(values)]
    out = moe(Route(*leaves[:5]), select, Experts(*leaves[6:]), backend=backend).out
    out.backward(torch.ones_like(out) if grad is None else grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for i, leaf in enumerate(leaves) if i != 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.001, 1.0], ids=["some", "nearly none", "all"])
@pytest.mark.usefixtures("products")
def test_every_gradient_agrees_with_float64(
    shape: tuple[int, ...], precision: str, static: bool, share: float, relative_error, tolerance
) -> None:
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    values, pairs = drawn(shape, dtype), shape[0] * shape[1]
    chosen = torch.rand(shape[:2], device="cuda") < share  # so that rounding moves no pair over the threshold
    grad = torch.randn(shape[0], shape[2], device="cuda")
    wide = [value.double() for value in values]
    expected = differentiated(wide, Select(None, chosen), grad, "reference")
    found = differentiated(values, Select(None, chosen, max_pairs=pairs if static else None), grad)
    bound = 1e-3 if precision == "tf32" else tolerance(dtype)  # 10 bits in every product; the sums are float32
    for i, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(own.cpu(), other.cpu()) < bound, i


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [-0.5, -0.999])
def test_the_same_bits_twice_whatever_room_is_given(dtype: torch.dtype, bias: float) -> None:
    values = drawn((600, 8, 96, 64, 4), dtype, bias)
    first, *others = (differentiated(values, Select(values[5], max_pairs=room)) for room in (None, None, 4800))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("routing", "pool", "unit"),
    [
        ("dynamic", "sample", "sequence"), ("token_choice", "batch", "frame"), ("expert_choice", "batch", "frame"),
        ("expert_choice", "sample", "frame"), ("dynamic", "batch", "frame"),
    ],
)  # fmt: skip
def test_every_routing_is_the_references(routing: str, pool: str, unit: str, relative_error) -> None:
    made = block(routing=routing, pool=pool, unit=unit, top_k=2 if routing == "token_choice" else None)
    hidden, condition, _ = inputs(batch=3, frames=40)
    mask = torch.arange(40, device="cuda") < torch.tensor([[40], [37], [2]], device="cuda")
    results = []
    for made.backend in ("reference", "triton"):
        made.zero_grad()
        made.update_selection_bias()  # a new step: what was counted goes
        torch.nn.init.constant_(made.selection_bias, -0.5)
        out = made(hidden, condition, mask)
        out.square().sum().backward()
        results.append((made.expert_counts.clone(), out, *(p.grad.clone() for p in made.parameters())))
    assert torch.equal(results[0][0], results[1][0])
    for own, other in zip(results[1][1:], results[0][1:], strict=True):
        assert relative_error(own.cpu(), other.cpu()) < 1e-5


@pytest.mark.parametrize(("dim", "width"), [(1024, 16), (16, 1024)], ids=["of tokens", "of hidden activations"])
def test_more_elements_than_32_bits_can_count(dim: int, width: int, relative_error) -> None:
    """The last tokens of a pool beyond 2^31 elements get what they get in a pool of their own."""
    tokens, last = 5 * 2**29 // max(dim, 2 * width), 64
    needed = 20 * tokens * max(dim, 2 * width)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of memory")
    values = drawn((tokens, 2, dim, width, 1), torch.bfloat16)
    grad = torch.zeros_like(values[0])
    grad[-last:].normal_()
    alone = [values[0][-last:].clone(), *values[1:]]
    found = differentiated(values, Select(values[5]), grad)
    expected = differentiated(alone, Select(values[5]), grad[-last:])
    found[:2] = [value[-last:] for value in found[:2]]  # the output, and the gradient of the tokens
    for own, other in zip(found, expected, strict=True):
        assert relative_error(own.float().cpu(), other.float().cpu()) < 16 * torch.finfo(torch.bfloat16).eps


def test_half_sums_agree_with_float64(relative_error) -> None:
    made = block(half_sums=True).eval().half()
    hidden, condition, mask = inputs()
    with torch.no_grad():
        out = made(hidden.half(), condition.half(), mask)
        made.half_sums, made.backend = False, "reference"
        expected = made.double()(hidden.half().double(), condition.half().double(), mask)
    assert relative_error(out.cpu(), expected.cpu()) < 4 * torch.finfo(torch.float16).eps * 64**0.5


def test_tune_finds_a_tile_that_runs() -> None:
    from intermoe.kernels.triton.tune import Workload, tune

    workload = Workload(300, 8, 256, 256, torch.bfloat16, torch.device("cuda"))
    found = tune(workload, "down")
    assert found.time <= found.shipped_time


@pytest.mark.parametrize("frames", [30, 300], ids=["small pool", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_through_the_drivers_library_give_the_bits_of_tritons_launcher(
    frames: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intermoe.kernels.triton import plan

    made = block().to(dtype)
    hidden, condition, mask = inputs(frames=frames)

    def step() -> list[Tensor]:
        made.zero_grad()
        given = hidden.to(dtype).requires_grad_()
        out = made(given, condition.to(dtype), mask)
        out.float().square().sum().backward()
        grads = [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]
        return [out.detach(), given.grad, *grads]

    plan.forget()
    step()
    step()
    found = step()
    made_plans = [one for one in plan._plans.values() if one is not None]
    assert made_plans
    assert all(one.program is not None for one in made_plans), "the log says why"
    for one in made_plans:
        monkeypatch.setattr(one, "program", None)
    for grad, other in zip(found, step(), strict=True):
        assert torch.equal(grad, other)
    plan.forget()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one(relative_error) -> None:
    made, values = block(), inputs()
    expected = made(*values)
    other = made.to("cuda:1")(*(value.to("cuda:1") for value in values))
    assert relative_error(other.cpu(), expected.cpu()) < 1e-6
