"""``intermoe generate --resume``: many prompts in one folder, by any number of processes, gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli
from intermoe.cli.common import Process, launched
from intermoe.cli.listed import PromptList
from intermoe.export import Take
from intermoe.files import locked
from intermoe.systems.intermoe.pipeline import InterMoEPipeline

pytestmark = pytest.mark.filterwarnings("ignore:the model has never seen")
PROMPTS = [f"two people bow {number} times" for number in range(10)] + ["they turn", "they turn"]
OPTIONS = ("--model", "model", "--frames", "16", "--steps", "2", "--format", "npz", "--format", "bvh")


@pytest.fixture
def generate(
    tiny_pipeline: InterMoEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Runs the command with a list of prompts in a folder with a model, on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_pipeline.save_pretrained("model")
    Path("prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *arguments: CliRunner().invoke(
        cli.app, ["generate", "--prompts", "prompts.txt", *OPTIONS, *map(str, arguments)]
    )
    torch.set_num_threads(threads)


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "settings.json"}


def test_every_prompt_has_its_number(generate: Callable[..., Any]) -> None:
    result = generate("--resume", "--out", "one")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\n"
    names = sorted(content("one"))
    suffixes = (".npz", ".person1.bvh", ".person2.bvh")
    assert names[:3] == [f"00001-two-people-bow-0-times{suffix}" for suffix in suffixes]
    assert names[-3:] == [f"00012-they-turn{suffix}" for suffix in suffixes]
    assert len(names) == 3 * len(PROMPTS)


def test_files_of_another_number_of_persons_are_known_again(generate: Callable[..., Any]) -> None:
    Path("prompts.txt").write_text("they bow", encoding="utf-8")
    assert generate("--resume", "--persons", 1).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("results").iterdir()}
    assert {path.name for path in before} == {"00001-they-bow.npz", "00001-they-bow.bvh", "settings.json"}
    assert generate("--resume", "--persons", 1).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("results").iterdir()} == before


def two_processes(rendezvous: Callable[[int], dict[str, str]]) -> list[subprocess.Popen[str]]:
    root = str(Path(__file__).resolve().parents[2])
    shared = {**rendezvous(2), "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "intermoe", "generate", "--prompts", "prompts.txt", *OPTIONS, "--out", "two"]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]


def test_several_processes_make_the_files_of_one(
    generate: Callable[..., Any], tmp_path: Path, rendezvous: Callable[[int], dict[str, str]]
) -> None:
    assert generate("--resume", "--out", "one").exit_code == 0
    ranks = two_processes(rendezvous)
    told = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    assert [out for out, _ in told] == ["two\n", ""]
    assert content("one") == content("two")


def test_nobody_waits_for_a_process_that_was_killed(
    generate: Callable[..., Any], tmp_path: Path, rendezvous: Callable[[int], dict[str, str]]
) -> None:
    """Without a launcher, which would end the others: the one that is left does its part and says why it stops."""
    ranks = two_processes(rendezvous)
    settings = Path("two/settings.json")
    end = time.monotonic() + 240
    while not settings.exists() and time.monotonic() < end:  # they have joined
        time.sleep(0.01)
    ranks[1].kill()
    _, told = ranks[0].communicate(timeout=240)
    ranks[1].communicate()
    assert ranks[0].returncode == 2, told
    assert "error: another process has ended before its part was done; what is written stays" in told
    assert generate("--resume", "--out", "two").exit_code == 0
    assert len(content("two")) == 3 * len(PROMPTS)


def test_processes_join_within_the_usual_time_and_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never comes is not waited for as long as the others' last pieces."""
    import accelerate

    asked: list[dict[str, Any]] = []

    class State:
        process_index, num_processes, device = 1, 2, "cpu"

        def __init__(self, **options: Any) -> None:
            asked.append(options)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", State)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **options: asked.append(options))
    here = launched()
    assert (here.rank, here.ranks, here.device) == (1, 2, "cpu")
    assert "timeout" not in asked[0]
    assert asked[1] == {"backend": "gloo", "timeout": timedelta(days=1)}


def test_processes_take_the_missing_batches_in_turn(tmp_path: Path) -> None:
    run = PromptList(tmp_path, [f"they bow {number}" for number in range(11)], [".npz", ".bvh"], 2, {"seed": 0})
    for name in ("00003-they-bow-2", "00004-they-bow-3", "00009-they-bow-8"):
        for suffix in (".npz", ".bvh"):
            (tmp_path / f"{name}{suffix}").touch()
    for name in ("00005-they-bow-4.npz", "00006-they-bow-5.npz"):  # of which the other file is missing
        (tmp_path / name).touch()
    shares = []
    for rank in range(2):
        with run.shared(Process(rank, 2)) as batches:
            shares.append(batches)
    assert shares == [[range(0, 2), range(6, 8), range(10, 11)], [range(4, 6), range(8, 10)]]


def test_it_goes_on_where_it_stopped(generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate("--resume", "--out", "one").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(cli.generate, "_write_listed", stopping(cli.generate._write_listed, after=9))
        assert isinstance(generate("--resume", "--out", "two").exception, RuntimeError)
    before = {path: path.stat().st_mtime_ns for path in Path("two").glob("0*")}
    assert len(before) == 9 * 3
    Path("two/00003-two-people-bow-2-times.person2.bvh").unlink()
    sampled: list[list[str]] = []
    plain = InterMoEPipeline.__call__

    def call(pipeline: InterMoEPipeline, prompts: Sequence[str], *values: Any, **named: Any) -> Any:
        sampled.append(list(prompts))
        return plain(pipeline, prompts, *values, **named)

    monkeypatch.setattr(InterMoEPipeline, "__call__", call)
    assert generate("--resume", "--out", "two").exit_code == 0
    assert sampled == [PROMPTS[:8], PROMPTS[8:]]
    assert content("one") == content("two")
    kept = {path: time for path, time in before.items() if "00003" not in path.name}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert generate("--resume", "--out", "two").exit_code == 0
    assert len(sampled) == 2


def stopping(write: Callable[..., Any], *, after: int) -> Callable[..., Any]:
    def limited(run: Any, formats: Sequence[str], index: int, take: Take) -> Any:
        if index == after:
            raise RuntimeError("the power is gone")
        return write(run, formats, index, take)

    return limited


@pytest.mark.filterwarnings("ignore:control. model")
def test_every_setting_that_files_depend_on_is_told_apart(generate: Callable[..., Any], tmp_path: Path) -> None:
    """Each in turn is another one; what is given is known by its content, wherever it is."""
    Path("prompts.txt").write_text("they bow", encoding="utf-8")
    for name, place in (("given", 1.0), ("other", 1.5)):
        target = {"person": 1, "joint": "head", "frames": [10], "positions": [[0.0, place, 0.0]]}
        Path(f"{name}.json").write_text(json.dumps({"targets": [target]}), encoding="utf-8")
    usual = {"--control": "given.json", "--guidance": 1.5, "--seed": 1, "--size": "128x160", "--scheduler": "ddim"}

    def told(**changes: Any) -> str:
        options = {**usual, **{f"--{name}": value for name, value in changes.items()}}
        done = generate("--resume", "--out", "one", *(word for pair in options.items() for word in pair))
        return "" if done.exit_code == 0 else str(done.stderr)

    assert told() == ""
    assert told() == ""
    for key, changes in {
        "guidance_scale": {"guidance": 2.0},
        "num_inference_steps": {"steps": 3},
        "scheduler": {"scheduler": "unipc"},
        "seed": {"seed": 2},
        "frames": {"frames": 20},
        "size": {"size": "160x128"},
        "camera": {"camera": "top"},
        "persons": {"persons": 1},
        "control": {"control": "other.json"},
    }.items():
        assert f" got others: {key} was " in told(**changes), key
    Path("elsewhere.json").write_bytes(Path("given.json").read_bytes())
    assert told(control="elsewhere.json") == ""
    Path("given.json").write_bytes(Path("other.json").read_bytes())
    assert " got others: control was " in told()
    assert told(control="elsewhere.json") == ""
    config = Path("model/config.json")
    config.write_text(config.read_text(encoding="utf-8").replace('"tiny"', '"another"'), encoding="utf-8")
    assert " got others: model was " in told(control="elsewhere.json")


def test_what_does_not_belong_together_is_refused(generate: Callable[..., Any], tmp_path: Path) -> None:
    assert generate("--resume", "--out", "one").exit_code == 0
    for options, message in {
        ("--seed", 5): "seed was 0, is 5",
        ("--steps", 3): "num_inference_steps was 2, is 3",
        ("--camera", "top"): "camera was 'side', is 'top'",
    }.items():
        refused = generate("--resume", "--out", "one", *options)
        assert refused.exit_code == 2
        assert f"expected motion of the same settings in one, got others: {message}\n" in refused.stderr
    Path("prompts.txt").write_text("\n".join([*PROMPTS[:-1], "they jump"]), encoding="utf-8")
    assert "got others: content was" in generate("--resume", "--out", "one").stderr
    Path("one/settings.json").write_text(json.dumps([1]), encoding="utf-8")
    assert "settings.json: expected the settings of a run" in generate("--resume", "--out", "one").stderr
    with locked(tmp_path / "one" / ".lock", "taken"):
        assert "another process is generating here" in generate("--resume", "--out", "one").stderr
    assert "--grid: expected neither with --resume" in generate("--resume", "--grid").stderr


def test_lists_that_differ_in_where_a_prompt_ends_are_others(tmp_path: Path) -> None:
    def settings(*prompts: str) -> dict[str, Any]:
        return PromptList(tmp_path, prompts, [".npz"], 2, {}).settings

    assert settings("they bow", "they turn") != settings("they bowt", "hey turn")
    assert settings("they bow", "they turn") == settings("they bow", "they turn")


def test_a_folder_whose_run_knew_a_setting_less_is_refused(tmp_path: Path) -> None:
    before, after = (PromptList(tmp_path, ["they bow"], [".npz"], 2, each) for each in ({}, {"seed": 0}))
    with before.shared(Process()):
        pass
    (tmp_path / ".00001-they-bow.0123abcd.npz").touch()
    with pytest.raises(ValueError, match="seed was None, is 0"), after.shared(Process()):
        pass
    assert (tmp_path / ".00001-they-bow.0123abcd.npz").exists()  # another run's folder stays as it is
    others = {".2024-notes", ".1-a.txt", ".2024-05-01.backup01.npz", "1-a.0123abcd.npz"}  # of the user's own
    for name in others:
        (tmp_path / name).touch()
    with before.shared(Process()):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"settings.json", ".lock", *others}  # what was begun is removed


def test_nobody_writes_before_all_have_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, as threads, of which one looks late and the other writes at once: together they make all."""
    run = PromptList(tmp_path, [f"they bow {number}" for number in range(6)], [".npz"], 1, {})
    barrier, plain = threading.Barrier(2, timeout=20), PromptList.is_made
    shares: dict[int, list[range]] = {}

    def late(self: PromptList, index: int) -> bool:
        if threading.current_thread().name == "1":
            time.sleep(0.02)
        return plain(self, index)

    def process(rank: int) -> None:
        with run.shared(Process(rank, 2, wait=barrier.wait)) as batches:
            shares[rank] = batches
            for index in (index for batch in batches for index in batch):
                run.stem(index).with_name(f"{run.stem(index).name}.npz").touch()

    monkeypatch.setattr(PromptList, "is_made", late)
    threads = [threading.Thread(target=process, args=(rank,), name=str(rank), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert shares == {0: [range(n, n + 1) for n in (0, 2, 4)], 1: [range(n, n + 1) for n in (1, 3, 5)]}
    assert all(map(run.is_made, range(6)))
