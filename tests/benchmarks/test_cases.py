"""Cases as a run prepares them: what their entries compute, on which inputs, and that they agree."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from intermoe import backends
from intermoe.benchmarks import (
    bench_denoiser,
    bench_generation,
    bench_moe,
    bench_scaling,
    bench_training,
    forms,
    grid,
    models,
)
from intermoe.benchmarks.bench_training import Trainee
from intermoe.benchmarks.forms import Form, draw, ours, training
from intermoe.benchmarks.grid import Drawn
from intermoe.benchmarks.harness import suite
from intermoe.benchmarks.harness.case import Scope, checked
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops.moe import moe

CPU = torch.device("cpu")
SHAPE = Shape(24, dim=16, experts=4, width=8, rows=2)
OUTPUTS = {
    "moe forward": 1, "moe forward + backward": 8, "moe overhead": 1, "denoiser call with guidance": 1,
    "denoiser call with levels": 1, "route forward": 2, "route backward": 5, "select forward": 5, "select backward": 1,
    "experts forward": 1, "experts backward": 4, "combine forward": 1, "combine backward": 1, "vae decode": 1,
    "vae encode": 1, "training denoiser step": 1, "training vae step": 1, "generation shipped model": 1,
}  # fmt: skip
"""What each entry returns: an output, and gradients of everything that has one."""


@pytest.mark.parametrize("step", [step for step in suite.STEPS if step not in ("loader", "export", "scaling")])
def test_every_entry_of_a_case_agrees_with_the_reference(step: str) -> None:
    for case in suite.cases(Scope(CPU, "quick"), (step,)):
        contest = case.prepare()
        entries, count = dict(contest.entries), OUTPUTS.get(f"{case.step} {case.call}")
        calls, differences = checked(contest)
        assert not contest.failed, case.name
        assert list(calls) == list(entries), case.name
        assert len(entries) > 1 or step in ("vae", "training", "generation"), case.name
        own = [name for name in entries if name not in contest.others]
        assert list(differences) == ([] if contest.expected is None else own), case.name
        if count is not None and contest.expected is not None:
            assert len(contest.expected()) == count, case.name


@pytest.mark.parametrize("name", ["ours", "published", "sorted"])
def test_an_input_set_is_taken_by_its_number(name: str, relative_error: Callable[..., float]) -> None:
    """With its own gradient; no two sets are the same."""
    sets = [draw(SHAPE, torch.float32, CPU, seed) for seed in range(2)]
    assert not any(torch.equal(a, b) for a, b in zip(*sets, strict=True))
    form = {
        "ours": ours(),
        "published": Form(forms.published),
        "sorted": forms.on_sorted_rows(forms.baselines.expert_loop),
    }
    grads = [torch.randn(24, 16) for _ in range(2)]
    both = training(form[name], sets, grads)
    for number in (1, 0):
        leaves = sets[number].leaves()
        out = moe(*leaves.steps(), backend="reference").out
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        assert len(wanted) == 7
        expected = (out, *torch.autograd.grad(out, wanted, grads[number]))
        assert relative_error(forms.forward(form[name], sets)(number)[0], out) < 1e-5
        assert max(relative_error(a, b) for a, b in zip(both(number), expected, strict=True)) < 1e-5


def test_a_form_runs_with_gradients_only_where_they_are_asked_for() -> None:
    """Weights of its own get gradients too; what a form that computes something else does not use, none."""
    x, own = draw(SHAPE, torch.float32, CPU), torch.ones(16, requires_grad=True)
    seen: list[bool] = []

    def call(given: forms.Inputs) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return given.hidden * own

    form = Form(call, (own,), note="own weights")
    assert torch.equal(forms.forward(form, [x])(0)[0], x.hidden)
    out, of_own, of_hidden = training(form, [x], [torch.full((24, 16), 2.0)])(0)
    assert seen == [False, True]
    assert not out.requires_grad
    assert torch.equal(of_own, 2 * x.hidden.sum(0))
    assert torch.equal(of_hidden, torch.full((24, 16), 2.0))
    with pytest.raises(RuntimeError):
        training(replace(form, note=""), [x], [torch.ones(24, 16)])(0)


def test_leaves_leave_out_what_is_frozen() -> None:
    x = draw(SHAPE, torch.float32, CPU)
    names = {n for n, t in zip(x._fields, x.leaves("w_down", "scale"), strict=True) if not t.requires_grad}
    assert names == {"selection_bias", "w_down", "scale"}
    route, select, experts = x.steps(7, recompute=True)
    assert all(a is b for a, b in zip((*route[:5], select.selection_bias, *experts[:2]), x, strict=True))
    assert (select.max_pairs, experts.recompute, experts.half_sums) == (7, True, False)


def test_inputs_are_of_the_spread_that_a_model_has() -> None:
    """Half types for what a model stores in them; the router, its condition and its biases are single."""
    x = draw(Shape(4000, dim=64, experts=4, width=32, rows=2), torch.bfloat16, CPU)
    single = {name for name, t in zip(x._fields, x, strict=True) if t.dtype == torch.float32}
    assert single == {"router_weight", "router_offset", "scale", "shift", "selection_bias"}
    spread = {
        "hidden": 1.0, "router_weight": 64**-0.5, "router_offset": 0.1, "scale": 0.1, "shift": 0.1,
        "w_gate_up": 64**-0.5, "w_down": 32**-0.5,
    }  # fmt: skip
    for name, std in spread.items():
        found = getattr(x, name).float()
        assert found.std().item() == pytest.approx(std, rel=4 / found.numel() ** 0.5 + 0.02), name
    assert [tuple(t.shape) for t in (x.router_offset, x.scale, x.w_gate_up, x.w_down)] == [
        (2, 4), (2, 64), (4, 64, 64), (4, 64, 32)
    ]  # fmt: skip


def test_a_threshold_is_found_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was set before is set again, also where drawing fails."""
    seen: list[str] = []

    def drawn(*given: Any) -> None:
        seen.append(torch.get_float32_matmul_precision())
        assert given == (SHAPE, torch.float32, CPU, 3, "even")
        raise ValueError("failed")

    monkeypatch.setattr(forms, "_drawn", drawn)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match="failed"):
            draw(SHAPE, torch.float32, CPU, 3)
        seen.append(torch.get_float32_matmul_precision())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "high"]


def test_backends_that_serve_and_reasons_of_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(device: torch.device, dtype: torch.dtype, name: str = "native") -> str:
        assert (device, dtype) == (CPU, torch.float16)
        if name == "triton":
            raise RuntimeError("triton: no GPU. Backends on this machine:\nmany")
        return name

    monkeypatch.setattr(forms.backends, "resolve", resolve)
    assert forms.usable_backends(CPU, torch.float16) == (["native", "reference"], {"triton": "triton: no GPU"})


def test_every_step_runs_on_its_input_set_and_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Any] = []

    def kernel(steps: Any, drawn: Drawn) -> grid.Ready:
        prepared.append((steps, drawn))
        return lambda: (drawn.tokens,)

    monkeypatch.setattr(grid, "sets_for", lambda *_: 2)
    monkeypatch.setattr(grid.backends, "load", lambda name: f"module of {name}")
    monkeypatch.setattr(grid, "usable_backends", lambda *_: (["native", "reference"], {"triton": "no GPU"}))
    contest = grid._contest(Scope(CPU), SHAPE, torch.float32, kernel, lambda drawn: lambda: (drawn.logits,), [])
    both = [Drawn.draw(SHAPE, torch.float32, CPU, seed) for seed in range(2)]
    assert not torch.equal(both[0].grad_out, both[1].grad_out)
    for number in (0, 1, 0, 1):
        assert torch.equal(contest.entries["native"](number)[0], both[number].tokens)
        assert torch.equal(contest.entries["reference"](number)[0], both[number].logits)
    assert torch.equal(contest.expected()[0], both[0].logits)
    assert [steps for steps, _ in prepared] == ["module of native"] * 2
    assert (contest.sets, contest.skipped) == (2, {"triton": "no GPU"})


@pytest.mark.parametrize("everything", [True, False])
def test_what_is_captured_on_a_gpu(everything: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The static mode and the dense network, beside what starts every kernel; forward alone recomputes nothing."""
    names = ("triton", "triton, recompute", "triton, static", "triton, half sums", "dense network")
    usable = {name: Form(lambda x, name=name: name, note="no routing" * (name == "dense network")) for name in names}
    scope = Scope(torch.device("cuda"), "full" if everything else "default")
    drawn: list[Any] = []
    asked: list[Any] = []
    monkeypatch.setattr(bench_moe, "draw", lambda *given: drawn.append(given) or len(drawn) - 1)
    monkeypatch.setattr(
        bench_moe, "competitors", lambda *given, **options: asked.append((given, options)) or (dict(usable), {"a": "b"})
    )
    contest = bench_moe.contest(scope, Shape(300), torch.float16, False, "one hot expert")
    given = (Shape(300), torch.float16, scope.device)
    assert drawn == [(*given, seed, "one hot expert") for seed in range(4)]
    assert asked == [((Shape(300), 0), {"everything": scope.all_backends})]
    assert list(contest.entries) == [
        "triton", "triton, static", "triton, half sums", "dense network", "triton, graph", "dense network, graph"
    ]  # fmt: skip
    computed = {name: entry(0)[0] for name, entry in contest.entries.items()}
    assert computed["triton, graph"] == "triton, static"
    assert computed["dense network, graph"] == "dense network"
    assert contest.graphs == {"triton, graph", "dense network, graph"}
    assert contest.others == {"dense network": "no routing", "dense network, graph": "no routing"}
    assert (contest.sets, contest.skipped) == (4, {"a": "b"})


def test_the_overhead_is_of_the_shape_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench_moe, "draw", lambda *given: asked.append(given) or draw(*given))
    case = suite.cases(Scope(CPU), ("moe",), ("overhead",))[0]
    name = backends.resolve(CPU, torch.float32)
    assert list(case.prepare().entries) == [name, f"{name}, operator", f"{name}, kernels alone"]
    ((shape, dtype, device),) = asked
    assert (grid.dimensions(shape), dtype, device) == (case.shape, torch.float32, CPU)


def test_pieces_of_a_pool_are_what_the_reference_takes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in order, the last one shorter; with backward only the output is compared."""
    monkeypatch.setattr(bench_scaling, "PIECE", 10)
    one_row = replace(SHAPE, rows=1)
    for with_backward in (False, True):
        contest = bench_scaling.pool(Scope(CPU, "quick"), one_row, torch.float32, with_backward)
        assert [len(t) for t in contest.expected()] == [24]
        assert list(checked(contest)[1]) == list(contest.entries) == [forms.usable_backends(CPU, torch.float32)[0][0]]


def test_scaling_runs_over_what_it_is_named_after() -> None:
    found: dict[str, list[Any]] = {}
    for case in suite.cases(Scope(CPU, "full"), ("scaling",)):
        varied = {"experts": "E", "capacity": "capacity", "persons": "P"}.get(case.call, "S")
        found.setdefault(case.call, []).append(case.shape[varied])
        if case.call != "persons" and not case.call.startswith("tokens"):
            assert (case.shape["S"], case.shape["D"], case.shape["F"]) == (4800, 768, 1024)
        given = case.prepare.args
        if case.call == "persons":
            assert case.prepare.func is bench_denoiser.contest
            assert (given[2], case.prepare.keywords) == (case.shape["P"], {"baseline": False})
        elif case.call.startswith("tokens"):
            assert given[3] == ("backward" in case.call)
            assert given[1] == Shape(int(case.shape["S"]), 256, 8, 512, rows=1)
        else:
            own = Shape(4800, 768, int(case.shape["E"]), 1024, case.shape.get("capacity", 1.0))
            load = (case.call.removeprefix("load: "),) if case.call.startswith("load") else ()
            assert given[1:] == (own, torch.float32, False, *load)
    tokens = [100, 1000, 10_000, 100_000, 1_000_000]
    assert found == {
        "tokens, forward": tokens, "tokens, forward + backward": tokens, "experts": [2, 4, 8, 16, 32, 64],
        "capacity": [0.5, 1.0, 2.0, 4.0], **{f"load: {load}": [4800] for load in forms.LOADS},
        "persons": [2, 3, 4, 6, 8],
    }  # fmt: skip


def test_levels_are_told_for_every_person_and_run_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def network(x: str, timesteps: torch.Tensor, text: str) -> torch.Tensor:
        asked.append((x, timesteps.shape, set(timesteps.flatten().tolist()), timesteps.is_contiguous(), text))
        return timesteps

    inputs = "x", torch.tensor([500, 500]), "text"
    monkeypatch.setattr(bench_denoiser, "built", lambda *given: (network, inputs))
    monkeypatch.setattr(bench_denoiser, "beside_reference", lambda *given: given)
    denoiser, told, entries, dtype, skipped = bench_denoiser.levels(Scope(CPU), torch.float32)
    assert (denoiser, told, dtype, skipped) == (network, inputs, torch.float32, {})
    shapes = {"one level": (2,), **{f"{runs} runs": (2, 2, runs) for runs in (1, 3, 5, 75)}}
    for name, shape in shapes.items():
        entries[name](0)
        assert asked.pop() == ("x", shape, {500}, True, "text"), name
    assert list(entries) == list(shapes)


def test_a_trainee_trains_as_the_published_model() -> None:
    """Gradients are of this step alone and clipped by value; the loss is that before the step."""
    module = nn.Linear(2, 1, bias=False)
    module.weight.data.fill_(1.0)
    scale = torch.tensor([0.25, 100.0])
    trainee = Trainee(module, lambda of: (of.weight * scale).sum())
    (loss,) = trainee.step()
    assert (loss.item(), loss.requires_grad) == (100.25, False)
    assert module.weight.grad.tolist() == [[0.25, 1.0]]
    decayed = 1.0 - 1e-4 * 2e-5 - 1e-4  # AdamW's first step is the rate, whatever the gradient
    torch.testing.assert_close(module.weight, torch.full((1, 2), decayed), rtol=1e-6, atol=0)
    trainee.step()
    assert module.weight.grad.tolist() == [[0.25, 1.0]]
    (group,) = trainee.optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (1e-4, 2e-5, True)


def test_every_entry_trains_weights_of_its_own() -> None:
    contest = bench_training.denoiser(Scope(CPU, "quick"), 2, 2)
    mine, theirs = contest.entries.values()
    (before,) = contest.expected()
    losses = [mine(0)[0] for _ in range(3)]
    assert losses[0] != losses[2], "the weights have moved"
    torch.testing.assert_close(theirs(0)[0], before, rtol=1e-5, atol=0)
    assert contest.tokens == 2 * 2 * 75


def test_how_a_training_step_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the published size with fewer layers; batches of the whole schedule's levels; the VAE's of 64 frames."""
    made: list[Any] = []

    def build(config: Any, *given: Any) -> Any:
        made.append((config, *given))
        raise LookupError

    monkeypatch.setattr(models, "build_denoiser", build)
    with pytest.raises(LookupError):
        bench_training.denoiser(Scope(CPU), 3, 4)
    assert made == [(replace(models.PUBLISHED, num_layers=3), torch.float32, CPU)]
    seen: list[Any] = []
    monkeypatch.setattr(models, "build_denoiser", lambda *_: SimpleNamespace(train=lambda: "network"))
    monkeypatch.setattr(
        models, "denoiser_inputs", lambda *given: seen.append(given) or (torch.zeros(4, 2, 75, 8), 0, "text")
    )

    def loss(module: Any, latents: Any, text: Any, mask: Any, **options: Any) -> Any:
        seen.append((module, text, mask, options["timesteps"].tolist(), options["noise"].std() > 0.9))
        raise LookupError

    monkeypatch.setattr(bench_training, "training_loss", loss)
    with pytest.raises(LookupError):
        bench_training.denoiser(Scope(CPU, "quick"), 3, 4)
    assert seen[0] == (models.TINY, 4, 2, 75, torch.float32, CPU)
    assert seen[1] == ("network", "text", None, [0, 333, 666, 999], True)


class Card(str):
    """A CPU that says it is a GPU."""

    type = "cuda"


def test_on_a_gpu_a_training_step_is_captured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry on its own backend, with weights of its own, and all with the same loss."""
    own, used = backends.resolve(CPU, torch.float32), list[str]()
    captured: list[nn.Module] = []

    @contextmanager
    def use(name: str) -> Any:
        used.append(name)
        with backends_use(name):
            yield

    def graph(call: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
        captured.append(module)
        return call

    backends_use = backends.use
    monkeypatch.setattr(bench_training.backends, "use", use)
    monkeypatch.setattr(bench_training, "TrainingGraph", graph)
    monkeypatch.setattr(bench_training, "usable_backends", lambda *_: ([own, "other"], {"triton": "no GPU"}))
    scope: Any = SimpleNamespace(device=Card("cpu"), quick=True)
    contest = bench_training.denoiser(scope, 2, 2)
    assert list(contest.entries) == [own, "authors' block", f"{own}, captured"]
    assert contest.skipped == {"triton": "no GPU"}
    (before,) = contest.expected()
    for name, backend in zip(contest.entries, (own, "reference", own), strict=True):
        used.clear()
        torch.testing.assert_close(contest.entries[name](0)[0], before, rtol=1e-5, atol=0)
        assert used == [backend], name
    assert len(captured) == 1
    assert all(parameter.grad is not None for parameter in captured[0].moe_blocks()[0].parameters())


@pytest.mark.parametrize("quick", [True, False])
def test_an_autoencoder_trains_on_windows(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published loss of a batch: what is missed, squared, and a fiftieth of the divergence; in training mode."""
    made: list[Any] = []

    class Autoencoder(nn.Linear):
        def __init__(self, config: Any) -> None:
            super().__init__(262, 1)
            made.append(config)
            self.eval()

        def encode(self, motion: torch.Tensor) -> Any:
            made.append((motion.shape, self.training))
            mean = self(motion)
            return SimpleNamespace(mode=lambda: motion * 0 + mean, kl=lambda: mean.sum())

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents * 3

    monkeypatch.setattr(bench_training, "CausalSkeletalVAE", Autoencoder)
    contest = bench_training.vae(Scope(CPU, "quick" if quick else "default"), 5)
    config = bench_training.VAEConfig(dropout=0.0)
    assert made == [replace(config, latent_dim=4, num_blocks=1) if quick else config, ((5, 64, 262), True)]
    motion = torch.randn(5, 64, 262, generator=torch.Generator().manual_seed(1))
    (found,) = contest.entries["whole"](0)
    torch.testing.assert_close(found, contest.expected()[0])
    torch.manual_seed(0)
    mean = nn.Linear(262, 1)(motion)
    torch.testing.assert_close(found, (3 * mean - motion).square().mean() + 0.02 * mean.sum())


def test_with_backward_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What recomputes is there and half sums are not; every set has a gradient of its own, of the storage type."""
    seen: list[Any] = []
    names = ("triton", "triton, recompute", "triton, static", "triton, half sums", "dense network")
    usable = {name: Form(lambda x: x, note="no routing" * (name == "dense network")) for name in names}
    monkeypatch.setattr(bench_moe, "draw", lambda *given: given)
    monkeypatch.setattr(bench_moe, "competitors", lambda *_, **__: (dict(usable), {}))
    monkeypatch.setattr(bench_moe, "training", lambda form, sets, grads: seen.append((len(sets), grads)) or form)
    scope: Any = SimpleNamespace(device=Card("cpu"), all_backends=True)
    contest = bench_moe.contest(scope, SHAPE, torch.bfloat16, True)
    assert list(contest.entries) == [
        "triton", "triton, recompute", "triton, static", "dense network", "triton, graph", "dense network, graph"
    ]  # fmt: skip
    assert contest.graphs == {"triton, graph", "dense network, graph"}
    assert len(seen) == 7
    sets, grads = seen[0]
    assert (sets, len(grads)) == (4, 4)
    assert {(tuple(grad.shape), grad.dtype) for grad in grads} == {((24, 16), torch.bfloat16)}
    assert not torch.equal(grads[0], grads[1])
    assert all(given is grads for _, given in seen)


def test_a_generation_is_captured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default backend's; the other entries start every kernel."""
    seen: list[Any] = []
    monkeypatch.setattr(bench_generation, "usable_backends", lambda *_: (["native", "reference"], {"triton": "no"}))
    monkeypatch.setattr(models, "on", lambda backend, call: lambda number: (backend, call()))

    class Pipeline:
        graphs: Any = None

        def __call__(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(joints=type(self.graphs).__name__)

    pipeline = Pipeline()
    monkeypatch.setattr(bench_generation.InterMoEPipeline, "from_pretrained", lambda *_, **__: pipeline)
    scope: Any = SimpleNamespace(device=Card("cpu"), quick=True, all_backends=True)
    contest = bench_generation.shipped(scope, 30, 4)
    assert {name: entry(0) for name, entry in contest.entries.items()} == {
        "native": ("native", ("NoGraphs",)), "reference": ("reference", ("NoGraphs",)),
        "native, captured": ("native", ("Graphs",)),
    }  # fmt: skip
    assert contest.expected() == ("reference", ("NoGraphs",))
    assert contest.skipped == {"triton": "no"}

    def sample(network: Any, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(network)
        return torch.zeros(1, 2, 4, models.TINY.input_dim)

    class Seen(bench_generation.Graphs):
        def of(self, network: Any, **_: Any) -> Any:
            return "captured", network

    monkeypatch.setattr(bench_generation, "sample", sample)
    monkeypatch.setattr(bench_generation, "Graphs", Seen)
    contest = bench_generation.published(scope, 16, 2)
    assert [entry(0)[0] for entry in contest.entries.values()] == ["native", "native", "reference"]
    assert list(contest.entries) == ["native", "native, captured", "authors' block"]
    plain, (how, network), theirs = seen
    assert (how, type(network)) == ("captured", type(plain.func))
    assert plain.func is network
    assert isinstance(theirs.func.layers[0].moe, models.PublishedBlock)
