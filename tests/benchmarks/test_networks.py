"""Networks, files and data that cases are made of: how they are built, and what is asked of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import backends
from intermoe.benchmarks import bench_denoiser, bench_export, bench_generation, bench_loader, bench_vae, models
from intermoe.benchmarks.grid import SMALL, Drawn
from intermoe.benchmarks.harness import suite
from intermoe.benchmarks.harness.case import Scope
from intermoe.data import DATA_SETS
from intermoe.motion.interhuman import FPS
from intermoe.systems.intermoe.config import VAEConfig

CPU = torch.device("cpu")


def test_a_denoiser_is_random_everywhere_and_selects_at_the_capacity() -> None:
    """Where training starts from zeros too, by which all that is behind would compute zeros; always the same one."""
    torch.manual_seed(5)
    first = models.build_denoiser(models.TINY, torch.bfloat16, CPU)
    torch.manual_seed(6)
    second = models.build_denoiser(models.TINY, torch.bfloat16, CPU)
    assert not first.training
    assert first.moe_blocks()[0].w_down.dtype == torch.bfloat16
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
        if name.endswith("modulation.weight") or name == "out.weight":
            assert one.float().std().item() == pytest.approx(0.02, rel=0.1), name
    denoiser = models.build_denoiser(models.TINY, torch.float32, CPU)
    torch.manual_seed(5)
    inputs = models.denoiser_inputs(models.TINY, 2, 2, 75, torch.float32, CPU)
    torch.manual_seed(6)
    assert all(map(torch.equal, inputs, models.denoiser_inputs(models.TINY, 2, 2, 75, torch.float32, CPU)))
    counts: list[list[int]] = []

    def count(block: Any, given: Any) -> None:
        logits = block.routing_logits(*given[:2]).flatten(0, 1)
        counts.append((torch.sigmoid(logits) + block.selection_bias > 0).sum(0).tolist())

    for block in denoiser.moe_blocks():
        block.register_forward_pre_hook(count)
    with torch.no_grad():
        denoiser(*inputs)
    assert counts == [[2 * 2 * 75 // 4] * 4] * models.TINY.num_layers


def test_a_call_runs_on_its_backend_without_gradients() -> None:
    seen: list[Any] = []
    before = backends.resolve(CPU, torch.float32)

    def call() -> Any:
        seen.append((backends.resolve(CPU, torch.float32), torch.is_grad_enabled()))
        return ()

    run = models.on("reference", call)
    run(3)
    assert seen == [("reference", False)]
    assert (backends.resolve(CPU, torch.float32), torch.is_grad_enabled()) == (before, True)


def test_a_block_in_the_authors_form_takes_people_apart_and_needs_a_norm() -> None:
    """Each person alone: another's tokens do not change what comes out."""
    denoiser = models.build_denoiser(models.TINY, torch.float32, CPU)
    twin = models.with_published_blocks(denoiser)
    assert [type(layer.moe) for layer in twin.layers] == [models.PublishedBlock] * models.TINY.num_layers
    assert not any(isinstance(layer.moe, models.PublishedBlock) for layer in denoiser.layers)
    block, condition = twin.layers[0].moe, torch.randn(2, models.TINY.dim)
    hidden = torch.randn(2, 2 * 6, models.TINY.dim)
    other = hidden.clone()
    other[:, 6:] += 1
    with torch.no_grad():
        one, two = block(hidden, condition), block(other, condition)
    assert one.shape == hidden.shape
    assert torch.equal(one[:, :6], two[:, :6])
    assert not torch.equal(one[:, 6:], two[:, 6:])
    block.block.norm = None
    with pytest.raises(ValueError, match="norm: expected a block that normalises"):
        block(hidden, condition)
    copies = models.with_published_blocks(denoiser, share=False)
    assert {id(p) for p in copies.parameters()}.isdisjoint(id(p) for p in denoiser.parameters())


def test_what_is_exported_is_motion_with_its_rotations() -> None:
    """Two people a metre apart; all joints turn, some bones slide by less than two centimetres."""
    take = bench_export.take_of(40)
    assert (take.joints.shape, take.fps, take.motion.shape) == ((2, 40, 22, 3), FPS, (2, 40, 262))
    np.testing.assert_allclose(take.joints[:, :, 0], np.broadcast_to([[[0, 1, 0]], [[1, 1, 0]]], (2, 40, 3)), atol=1e-6)
    np.testing.assert_array_equal(take.motion[..., :66].reshape(2, 40, 22, 3), take.joints)
    columns = take.motion[..., 132:258].reshape(2, 40, 21, 3, 2)
    np.testing.assert_allclose(
        np.einsum("ptjki,ptjkl->ptjil", columns, columns), np.broadcast_to(np.eye(2), (2, 40, 21, 2, 2)), atol=1e-5
    )
    lengths = np.linalg.norm(take.joints[:, :, 1:4] - take.joints[:, :, :1], axis=-1)
    assert 0.005 < np.ptp(lengths, axis=1).max() < 0.04
    assert (np.ptp(columns, axis=1).max((-1, -2)) > 0.1).all()
    again = bench_export.take_of(40)
    np.testing.assert_array_equal(again.joints, take.joints)


def test_every_export_fits_the_skeleton_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is told is the size of all files; what is not installed is named."""
    given: list[Any] = []

    def save(path: Path, take: Any) -> list[Path]:
        given.append((path.suffix, take))
        files = [tmp_path / "a", tmp_path / "b"]
        for number, file in enumerate(files):
            file.write_bytes(bytes(10 + number))
        return files

    whole = bench_export.take_of(30)
    monkeypatch.setattr(bench_export.export, "save_take", save)
    monkeypatch.setattr(bench_export.export, "load", lambda path: whole)
    contest = bench_export.writing("bvh", 30)
    for _ in range(2):
        assert contest.entries["write"](0)[0].item() == 21
    takes = [take for _, take in given]
    assert len({id(take) for take in takes}) == 3
    assert {suffix for suffix, _ in given} == {bench_export.export.FORMATS["bvh"].suffix}
    for take in takes:
        assert (take.fps, take.prompt) == (FPS, "two people move")
        np.testing.assert_array_equal(take.joints, whole.joints)
        np.testing.assert_array_equal(take.motion, whole.motion)
    assert contest.seconds_of_motion == 1.0
    chosen = SimpleNamespace(needs=("absent_module", "json", "another_one"))
    monkeypatch.setattr(bench_export.export, "FORMATS", {"odd": chosen})
    absent = bench_export.writing("odd", 30)
    assert (absent.entries, absent.skipped) == ({}, {"write": "absent_module, another_one not installed"})


def test_a_generation_is_sampled_from_the_same_noise_and_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def sample(network: Any, text: Any, shape: Any, sampler: Any, generators: Any) -> torch.Tensor:
        asked.append((shape, sampler.num_inference_steps, torch.randn(2, generator=generators[0]).tolist()))
        assert (text.shape, len(generators)) == ((1, models.TINY.text_dim), 1)
        return torch.ones(shape)

    monkeypatch.setattr(bench_generation, "sample", sample)
    contest = bench_generation.published(Scope(CPU, "quick"), 24, 7)
    assert list(contest.entries)[1:] == ["authors' block"]
    both = [entry(0)[0] for entry in contest.entries.values()]
    noise = torch.randn(2, generator=torch.Generator().manual_seed(0)).tolist()
    assert asked == [((1, 2, 6, models.TINY.input_dim), 7, noise)] * 2
    assert torch.equal(*both)
    assert both[0].shape == (2, 24, 262)


def test_the_shipped_model_starts_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured graphs are an entry of their own, where there are any."""
    seen: list[Any] = []

    class Pipeline:
        graphs: Any = None

        def __call__(self, prompts: list[str], **_: Any) -> Any:
            seen.append((type(self.graphs), prompts))
            return SimpleNamespace(joints=torch.ones(1))

    def load(*given: Any, **options: Any) -> Pipeline:
        assert (given, options) == (("duets",), {"device": CPU})
        return Pipeline()

    monkeypatch.setattr(bench_generation.InterMoEPipeline, "from_pretrained", load)
    contest = bench_generation.shipped(Scope(CPU), 30, 4)
    assert list(contest.entries) == [backends.resolve(CPU, torch.float32)]
    contest.entries[next(iter(contest.entries))](0)
    assert contest.tolerance == pytest.approx(1e-3)  # a hundred times that of one product
    contest.expected()
    assert seen == [(bench_generation.NoGraphs, ["Two people dance salsa together."])] * 2
    network = torch.nn.Linear(2, 2)
    called = bench_generation.NoGraphs().of(network)
    assert torch.equal(called(torch.ones(2)), network(torch.ones(2)))


@pytest.mark.parametrize("name", sorted(DATA_SETS))
@pytest.mark.parametrize("windows", [False, True])
def test_data_are_loaded_as_training_loads_them(name: str, windows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sequences in every way in which a data set can be seen; windows of 64 frames; from a seed."""
    made: list[Any] = []

    class Data:
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append((given[0].name, given[1].name, *given[2:], options))

        def __len__(self) -> int:
            return 2

        def num_frames(self, number: int) -> int:
            return 100 + number

    def sampler(*given: Any, **options: Any) -> Any:
        made.append((*given, options))
        return "sampler"

    def batches(drawn: Any, order: Any, collate: Any, workers: int) -> Any:
        made.append((type(drawn).__name__, order, collate, workers))
        return iter([{"motion": torch.tensor(1.0)}, {"motion": torch.tensor(2.0)}])

    for attribute, fake in (
        ("write_cache", lambda data_set, clips, *_, **__: made.append((data_set.name, clips.count))),
        ("MotionDataset", Data), ("check", lambda data: made.append("checked")), ("StreamSampler", sampler),
        ("batches", batches), ("Windows", lambda data, length: made.append(length) or data),
    ):  # fmt: skip
        monkeypatch.setattr(bench_loader, attribute, fake)
    data_set = DATA_SETS[name]
    contest = bench_loader.loading(data_set, windows, 9, (0, 3))
    whole = {"mirror": data_set.mirror is not None, "swap_persons": data_set.swappable}
    assert made[:3] == [(name, 9), (name, "cache", "train", whole), "checked"]
    assert made[3:-4] == ([(name, "cache", "train", {"min_frames": 64}), 64] if windows else [])
    drawn = ([100, 101], 64, range(bench_loader.BATCHES), {"seed": 0})
    assert made[-4:] == [
        drawn, ("Data", "sampler", bench_loader.collate, 0), drawn, ("Data", "sampler", bench_loader.collate, 3)
    ]  # fmt: skip
    assert list(contest.entries) == ["0 workers", "3 workers"]
    assert [contest.entries["3 workers"](0)[0].item() for _ in range(2)] == [1.0, 2.0]
    assert contest.tokens == 64


def test_loaders_of_a_level() -> None:
    for level, count, workers in (("quick", 64, (0,)), ("default", 512, (0, 2))):
        listed = suite.cases(Scope(CPU, level), ("loader",))
        assert [case.call for case in listed] == [
            f"{name}, {call}" for name in DATA_SETS for call in ("sequences", "windows of 64")
        ]
        for case in listed:
            data_set, windows, *rest = case.prepare.args  # type: ignore[attr-defined]
            assert case.call == f"{data_set.name}, {'windows of 64' if windows else 'sequences'}"
            assert rest == [count, workers]
            assert case.shape == {"B": 64, "sequences": count}


@pytest.mark.parametrize("level", ["quick", "default"])
def test_an_autoencoder_is_that_of_the_level_and_encodes_causally(level: str) -> None:
    """The published one, or the smallest; 300 frames or 16."""
    vae = bench_vae.build(Scope(CPU, level))
    assert vae.config == (VAEConfig(latent_dim=4, num_blocks=1) if level == "quick" else VAEConfig())
    assert not vae.training
    frames = {case.shape["frames"] for case in suite.cases(Scope(CPU, level), ("vae", "export"))}
    assert frames == {16 if level == "quick" else 300}


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [(torch.float32, "highest", 1e-4), (torch.float32, "high", 0.1), (torch.bfloat16, "highest", 0.1)],
)
def test_how_far_a_whole_network_may_be_apart(
    dtype: torch.dtype, precision: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as far as a product, or where a token may cross a threshold a tenth of what is right."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    assert bench_denoiser.chaotic(dtype) == pytest.approx(expected)


@pytest.mark.parametrize("causal", [True, False])
def test_an_encoder_that_looks_ahead_is_not_timed(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 frames the first 12 are encoded alone, and are to be what they are in the whole."""

    class Encoder(torch.nn.Linear):
        downsampling = 4

        def encode(self, motion: torch.Tensor) -> Any:
            ahead = 0.0 if causal else motion.mean()
            return SimpleNamespace(mean=self(motion[:, ::4]) + ahead)

    monkeypatch.setattr(bench_vae, "build", lambda scope: Encoder(262, 3))
    contest = bench_vae.encoding(Scope(CPU, "quick"), 24)
    (found,), (expected,) = contest.entries["whole"](0), contest.expected()
    assert found.shape == expected.shape == (1, 6, 3)
    torch.testing.assert_close(found[:, 3:], expected[:, 3:])
    assert torch.allclose(found[:, :3], expected[:, :3], atol=1e-5) is causal


@pytest.mark.parametrize(("call", "gated"), [("forward", True), ("backward", False)])
def test_a_backward_sums_without_gates(call: str, gated: bool) -> None:
    listed = suite.cases(Scope(CPU, "quick"), ("combine",), (f"{call} float32",))
    (case,) = listed
    drawn = Drawn.draw(SMALL, torch.float32, CPU)
    pairs = drawn.selection
    rows = drawn.grad_out[pairs.token_idx] * (pairs.gates[:, None] if gated else 1.0)
    expected = torch.zeros_like(drawn.grad_out).index_add(0, pairs.token_idx, rows)
    contest = case.prepare()
    for entry in (lambda _: contest.expected(), *contest.entries.values()):
        torch.testing.assert_close(entry(0)[0], expected, rtol=1e-4, atol=1e-5)
