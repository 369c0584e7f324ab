"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

LONGEST = (
    "kernels/triton/test_interpreter.py",
    "kernels/native/test_emulated.py",
    "train/test_scale.py",
    "kernels/native/test_cuda.py",
    "kernels/triton/test_compile.py",
    "export/test_html.py",
    "viz/test_live.py",
    "train/test_killed.py",
    "train/test_distributed.py",
    "examples/test_examples.py",
)
"""Files that take longest (``--durations``). They come first: one at the end would run alone."""

SHARED = Path(os.environ.get("INTERMOE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
"""Reference arrays and real motion, which are not part of the repository: beside it, or where the variable says."""


def pytest_configure(config: pytest.Config) -> None:
    """With ``--dist loadfile``: files in the order of ``LONGEST``, not by their numbers of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``LONGEST`` first, the others as they are."""
    tests = Path(__file__).parent
    places = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    """What a test draws without a generator of its own, and how it rounds, do not depend on the tests before it."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # training on a CPU turns it on


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of the reference arrays and of real motion; it may be absent."""
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reader of the reference arrays: ``golden("moe_block.npz")`` is a mapping, ``golden("x.json")`` parsed JSON."""

    def read(name: str) -> Any:
        path = SHARED / "golden" / name
        if not path.exists():
            pytest.skip(f"reference arrays are absent: {name} not found in {path.parent}")
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return np.load(path, allow_pickle=False)

    return read


@pytest.fixture(scope="session")
def salsa() -> Path:
    """Folder of the two-person salsa motion capture in InterHuman's layout."""
    path = SHARED / "data" / "salsa"
    if not path.exists():
        pytest.skip(f"real motion is absent: {path} not found")
    return path


@pytest.fixture(scope="session")
def two_people() -> Callable[..., Path]:
    """``two_people(folder, {"train": {"1": 40}}, captions)``: swaying bodies in InterHuman's layout, seeded.

    Each split has its items with their numbers of frames; a caption a line, the same of every item.
    """

    def make(root: Path, splits: dict[str, dict[str, int]], captions: str) -> Path:
        rng = np.random.default_rng(0)
        body = np.column_stack([rng.uniform(-0.3, 0.3, 22), rng.uniform(-0.2, 0.2, 22), np.linspace(0.9, 1.7, 22)])
        body[1:3] = [[0.1, 0.0, 0.85], [-0.1, 0.0, 0.85]]  # hips beside each other: the facing direction
        for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
            (root / folder).mkdir(parents=True)
        for split, items in splits.items():
            (root / "split" / f"{split}.txt").write_text("\n".join(items), encoding="utf-8")
            for name, frames in items.items():
                (root / "annots" / f"{name}.txt").write_text(captions, encoding="utf-8")
                time = np.arange(frames + 1)[:, None, None] / 30
                for person in ("person1", "person2"):
                    values = np.zeros((frames + 1, 492), dtype=np.float32)
                    sway = 0.2 * np.sin(2 * time + rng.uniform(0, 6, (1, 22, 3)))
                    values[:, :66] = (body + sway + rng.uniform(-1, 1, 3) * (1, 1, 0)).reshape(frames + 1, 66)
                    values[:, 186:312] = rng.normal(size=126) + 0.1 * sway[:, :21].repeat(2, axis=-1).reshape(-1, 126)
                    np.save(root / "motions_processed" / person / f"{name}.npy", values)
        return root

    return make


@pytest.fixture(scope="session")
def dancers(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people in InterHuman's layout, for what works on any: salsa where it is, else swaying bodies."""
    path = SHARED / "data" / "salsa"
    if path.exists():
        return path
    splits = {"train": {str(i): 100 + i for i in range(24)}, "val": {str(i): 100 + i for i in range(24, 28)}}
    return two_people(tmp_path_factory.mktemp("dancers") / "two", splits, "two people sway\nthe first turns left")


@pytest.fixture(scope="session")
def tiny_pipeline() -> Any:
    """A whole model, freshly drawn and small enough to generate in a fraction of a second. Do not change it."""
    from intermoe.motion.statistics import Statistics
    from intermoe.systems.intermoe.config import DenoiserConfig, PipelineConfig, VAEConfig
    from intermoe.systems.intermoe.denoiser import Denoiser
    from intermoe.systems.intermoe.pipeline import InterMoEPipeline
    from intermoe.systems.intermoe.vae import CausalSkeletalVAE
    from intermoe.text.protocol import TextConfig
    from intermoe.text.wordpiece import WordPieceTextEncoder

    torch.manual_seed(0)
    text = TextConfig(output_dim=8, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=16, vocab_size=60)
    config = PipelineConfig(
        name="tiny",
        min_frames=8,
        max_frames=40,
        vae=VAEConfig(latent_dim=4, num_blocks=1),
        denoiser=DenoiserConfig(
            input_dim=28, text_dim=8, dim=8, num_layers=1, num_heads=2, num_experts=3, expert_dim=4
        ),
        text=text,
    )
    tokenizer = WordPieceTextEncoder.train_tokenizer(["Two people bow.", "One of them turns to the left."], 60)
    denoiser = Denoiser(config.denoiser)
    torch.nn.init.normal_(denoiser.out.weight, std=0.2)
    statistics = Statistics(np.linspace(-1, 1, 262, dtype=np.float32), np.linspace(0.1, 2, 262, dtype=np.float32))
    vae, text_encoder = CausalSkeletalVAE(config.vae), WordPieceTextEncoder(config.text, tokenizer)
    return InterMoEPipeline(config, vae, denoiser, text_encoder, statistics)


@pytest.fixture(scope="session")
def rendezvous() -> Callable[[int], dict[str, str]]:
    """What a launcher tells each of so many processes, but its rank: ``rendezvous(2)`` is part of an environment.

    They meet at a store of this process, whose port is its own from the start: one that was free a moment ago may be
    taken.
    """
    stores = []  # each ends with its last reference

    def meet(processes: int) -> dict[str, str]:
        stores.append(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port), "WORLD_SIZE": str(processes)}
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return {**place, **agent, "ACCELERATE_USE_CPU": "true"}

    return meet


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., str]:
    """``run_ranks(script, size, *arguments, limit=seconds)`` runs the script's ``main`` in so many processes.

    They have ``limit`` seconds; where one fails, or time ends, what they printed is in the failure. See ``ranks.py``.
    """

    def run(script: Path, size: int, *arguments: str, limit: float) -> str:
        command = [sys.executable, str(Path(__file__).parent / "ranks.py"), str(script), str(size), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe, session = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, {"start_new_session": True}
        started = subprocess.Popen(command, env=environment, text=True, **pipe, **session)  # type: ignore[call-overload]
        try:
            printed = started.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            pytest.fail(f"{script.name} on {size} ranks took more than {limit} s; printed:\n{started.communicate()[0]}")
        assert started.returncode == 0, printed
        return printed

    return run


@pytest.fixture
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialised floating-point memory reads as NaN, so a result that depends on it cannot pass."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for CUDA graphs, which counts ``captures`` and ``replays``; see ``graphs_on_cpu.py``."""
    spec = importlib.util.spec_from_file_location("graphs_on_cpu", Path(__file__).parent / "graphs_on_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.GraphsOnCpu(monkeypatch)


@pytest.fixture(scope="session")
def published_file() -> Callable[..., dict[str, torch.Tensor]]:
    """``published_file(load, known)``: a state dict under every name that ``load`` asks a published file for.

    For what holds of a reader whatever the names are; whether they are right is known from reference arrays and from
    files that are written under names of their own. What is ``known``, tensors or shapes, is what sizes are read off;
    the rest is drawn in the shapes that are asked for, but graphs and groups, of which a file holds copies, are ones.
    """
    from intermoe.checkpoints import StrictReader

    def make(load: Callable[[dict[str, torch.Tensor]], Any], known: dict[str, Any]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            return -0.9 * torch.rand(shape, generator=generator) - 0.05  # a bias of the selection lies in (-1, 0)

        state = {k: v if isinstance(v, torch.Tensor) else draw(v) for k, v in known.items()}
        take = StrictReader.take

        def inventing(reader: StrictReader, key: str, shape: tuple[int, ...]) -> torch.Tensor:
            if key not in state:
                copied = key.endswith(("adj_matrix", "skeleton_pool", "skeleton_unpool"))
                state[key] = torch.ones(shape) if copied else draw(shape)
            reader._state = state
            return take(reader, key, shape)

        with mock.patch.object(StrictReader, "take", inventing):
            load(dict(state))
        return state

    return make


def relative_error(actual: Any, expected: Any) -> float:
    """Relative norm ||actual - expected|| / ||expected|| in float64 (absolute where expected is zero)."""
    a = torch.as_tensor(np.asarray(actual) if not isinstance(actual, torch.Tensor) else actual).detach().double()
    b = torch.as_tensor(np.asarray(expected) if not isinstance(expected, torch.Tensor) else expected).detach().double()
    if a.shape != b.shape:
        raise ValueError(f"actual: expected shape {tuple(b.shape)}, got {tuple(a.shape)}")
    norm = b.norm().item()
    return (a - b).norm().item() / (norm if norm > 0 else 1.0)


@pytest.fixture(scope="session", name="relative_error")
def relative_error_fixture() -> Callable[[Any, Any], float]:
    """The project's measure of difference; see ``relative_error``."""
    return relative_error


@pytest.fixture(scope="session")
def tolerance() -> Callable[..., float]:
    """The one bound of the relative norm between two computations on values stored in a dtype, summed in float32.

    It is what benchmarks demand of whatever they time: nothing is promised there that is not tested here.
    """
    from intermoe.benchmarks.harness.case import tolerance

    return tolerance
