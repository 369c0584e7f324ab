"""Two processes on gloo, with whole weights (DDP) and with sharded ones (FSDP2): one training, saved and resumed.

Accelerate turns FSDP on for accelerators alone. On the CPU its own FSDP2 preparation works all the same; ``rank.py``
sets after the start what keeps it from being chosen.
"""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import intermoe.train

# runs in every process; see there
RANK = Path(__file__).parent / "rank.py"
SMOKE = Path(intermoe.train.__file__).parent / "configs" / "salsa_smoke_denoiser.yaml"
LONGEST = 300.0


def _launch(
    server: ForkServerContext,
    rendezvous: Callable[[int], dict[str, str]],
    processes: int,
    config: Path,
    output: Path,
    vae: Path,
    data: Path,
    *,
    sharded: bool = False,
    resume: bool = False,
) -> list[float]:
    """Train, and return the loss of every step, the mean over processes."""
    paths = {"config": config, "output": output, "vae": vae, "data": data}
    arguments = {**{name: str(path) for name, path in paths.items()}, "sharded": sharded, "resume": resume}
    shared = rendezvous(processes) if processes > 1 else {}
    ranks = []
    for rank in range(processes):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}
        ranks.append(server.Process(target=runpy.run_path, args=(str(RANK), {**arguments, "environment": environment})))
        ranks[-1].start()
    try:
        until = time.monotonic() + LONGEST
        while any(process.exitcode is None for process in ranks) and time.monotonic() < until:
            connection.wait([process.sentinel for process in ranks if process.exitcode is None], timeout=1)
            if any(process.exitcode for process in ranks):
                break
    finally:
        for process in ranks:  # one that waits for another that failed would wait long
            process.kill()
            process.join()
    failures = [path.read_text() for path in sorted(output.parent.glob("error*.txt"))]
    assert [process.exitcode for process in ranks] == [0] * processes, "\n".join(failures)
    curves = [json.loads((output.parent / f"losses{rank}.json").read_text()) for rank in range(processes)]
    assert all(curve == curves[0] for curve in curves)
    return curves[0]


@pytest.fixture(scope="module")
def launch(server: ForkServerContext, rendezvous: Callable[[int], dict[str, str]]) -> Callable[..., list[float]]:
    return functools.partial(_launch, server, rendezvous)


# no dropout, which is drawn rank by rank; micro-steps, so that there are steps without synchronisation too
SAME = {
    "denoiser.dropout": 0.0,
    "text.dropout": 0.0,
    "optim.accumulation_steps": 2,
    "optim.steps": 4,
    "run.validate_every": 4,
}


@pytest.fixture(scope="module")
def whole(
    launch: Callable[..., list[float]],
    trained_vae: Path,
    pairs: Path,
    write_config: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[float], Path]:
    """Losses and folder of one process with the doubled batch."""
    output = tmp_path_factory.mktemp("whole") / "run"
    config = write_config("denoiser", **SAME, **{"data.batch_size": 4})
    return launch(1, config, output, trained_vae / "model", pairs), output


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one_and_resume(
    sharded: bool,
    launch: Callable[..., list[float]],
    whole: tuple[list[float], Path],
    trained_vae: Path,
    pairs: Path,
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    config, vae, output = (
        write_config("denoiser", **SAME, **{"data.batch_size": 2}),
        trained_vae / "model",
        tmp_path / "run",
    )
    losses = launch(2, config, output, vae, pairs, sharded=sharded)
    assert len(set(losses)) == len(losses) == 4
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(whole[0]), rtol=1e-4, atol=0)
    model, expected = (load_file(folder / "model/model.safetensors") for folder in (output, whole[1]))
    assert model.keys() == expected.keys()
    for key, value in model.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=key)
    biases = [value for key, value in model.items() if key.endswith("selection_bias")]
    assert any((bias != -0.5).any() for bias in biases)
    if not sharded:
        first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(value, second[key]) for key, value in first.items())

    # what a run killed after its first checkpoint left behind
    last = "checkpoints/step-00000004"
    again = tmp_path / "again" / "run"
    shutil.copytree(output, again, ignore=shutil.ignore_patterns("step-00000004", "model", "logs"))
    resumed = launch(2, config, again, vae, pairs, sharded=sharded, resume=True)
    assert resumed == losses[2:]
    for name in ("model.safetensors", "average.safetensors", "state.json"):
        assert (again / last / name).read_bytes() == (output / last / name).read_bytes(), name


def test_the_smoke_recipe_gives_the_same_curve_on_two_processes(
    launch: Callable[..., list[float]], dancers: Path, trained_vae: Path, tmp_path: Path
) -> None:
    few = tmp_path / "salsa"
    (few / "split").mkdir(parents=True)
    for name in ("motions_processed", "annots"):
        (few / name).symlink_to(dancers / name)
    for split, count in (("train", 12), ("val", 2)):
        names = (dancers / "split" / f"{split}.txt").read_text().split()[:count]
        (few / "split" / f"{split}.txt").write_text("\n".join(names))
    recipe = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    recipe["denoiser"]["input_dim"] = 28  # of the tests' small VAE
    recipe["optim"]["steps"] = 8
    recipe["run"] |= {"validate_every": 8, "checkpoint_every": 8, "fid_clips": 2, "fid_steps": 2}
    curves = []
    for processes, batch_size in ((1, 6), (2, 3)):
        recipe["data"]["batch_size"] = batch_size
        config, output = tmp_path / f"{processes}.json", tmp_path / str(processes) / "run"
        config.write_text(json.dumps(recipe), encoding="utf-8")
        curves.append(launch(processes, config, output, trained_vae / "model", few))
    assert len(set(curves[0])) == 8
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=0)
