"""The ``intermoe`` command: what it writes, and that it refuses in one line before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import backends, cli
from intermoe.data import InterHumanDataset
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.pipeline import InterMoEPipeline

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling and reading weights are errors that nothing catches."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("work began")

    monkeypatch.setattr(InterMoEPipeline, "__call__", fail)
    monkeypatch.setattr(InterMoEPipeline, "from_pretrained", fail)


def refused(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_generate_writes_arrays_and_videos(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    formats = ("--format", "npz", "--format", "mp4", "--format", "gif")
    result = run("generate", "Two people bow!", "--model", model, "--frames", 16, "--steps", 2, "--seed", 3, *formats)
    assert result.exit_code == 0, result.output
    names = ["two-people-bow.gif", "two-people-bow.mp4", "two-people-bow.npz"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == names
    assert [Path(line).name for line in result.stdout.split()] == [names[2], names[1], names[0]]
    with np.load(tmp_path / "results" / names[2], allow_pickle=False) as archive:
        assert archive["joints"].shape == (2, 16, 22, 3)
        assert archive["joints"].dtype == np.float32
        assert archive["motion"].shape == (2, 16, 262)
        assert str(archive["prompt"]) == "Two people bow!"
        assert int(archive["seed"]) == 3
        assert str(archive["model"]) == str(model)
        assert int(archive["num_inference_steps"]) == 2


def test_generate_writes_for_other_programs(run: Run, model: Path, tmp_path: Path) -> None:
    formats = ("--format", "bvh", "--format", "glb", "--format", "amass", "--format", "bvh")
    options = ("--model", model, "--frames", 16, "--steps", 2, *formats)
    first = run("generate", "Two people bow!", *options)
    assert first.exit_code == 0, first.output
    suffixes = (".person1.bvh", ".person2.bvh", ".glb", ".person1.amass.npz", ".person2.amass.npz")
    assert [Path(line).name for line in first.stdout.split()] == [f"two-people-bow{suffix}" for suffix in suffixes]
    second = run("generate", "Two people bow!", *options)
    assert [Path(line).name for line in second.stdout.split()] == [f"two-people-bow-2{suffix}" for suffix in suffixes]


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_generate_reacts_and_keeps_what_a_file_says(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--steps", 2, "--format", "npz")
    assert run("generate", "they bow", "--frames", 20, *options).exit_code == 0
    given = np.load(tmp_path / "results" / "they-bow.npz")["joints"]
    (tmp_path / "control.json").write_text(
        json.dumps({"known": [{"person": 1, "file": "results/they-bow.npz", "frames": [4, 24]}]})
    )
    result = run("generate", "they turn", "--control", "control.json", "--frames", 28, *options)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "results" / "they-turn.npz") as made:
        assert np.array_equal(made["joints"][1, 4:24], given[0])
        assert str(made["control"]) == "control.json"
    result = run("generate", "they wave", "--react-to", "results/they-bow.npz", *options)
    assert result.exit_code == 0, result.output
    made = np.load(tmp_path / "results" / "they-wave.npz")["joints"]
    assert made.shape == (2, 20, 22, 3)
    np.testing.assert_allclose(np.diff(made[0], axis=0)[..., 1], np.diff(given[0], axis=0)[..., 1], atol=1e-4)
    reacting = ("generate", "they wave", "--react-to", "results/they-bow.npz", *options)
    refused(run(*reacting, "--control", "control.json"), "error: --control, --react-to: expected one of the two")
    refused(run("generate", "they wave", "--react-to", "absent.npz", *options), "error: --react-to: no such file")
    refused(run("generate", "they wave", "--control", "absent.json", *options), "error: --control: ")
    refused(run("generate", "they wave", "--resample", *options), "error: --resample: expected with --react-to")
    refused(
        run("generate", "they turn", "--control", "control.json", "--frames", 20, *options),
        "error: --control: control.json: known[0].frames: expected within [0, 20), got [4, 24)",
    )


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_generate_makes_one_scene_of_a_timeline(
    run: Run, model: Path, tmp_path: Path, tiny_pipeline: InterMoEPipeline
) -> None:
    options = ("--model", model, "--steps", 1, "--format", "npz")
    result = run("generate", "--timeline", "they bow:20", "--timeline", "they: turn:30", "--seed", 3, *options)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "results").iterdir()
    with np.load(path) as made:
        assert made["joints"].shape == (2, 50, 22, 3)
        assert str(made["prompt"]) == "they bow; they: turn"
        scene = tiny_pipeline.timeline([("they bow", 20), ("they: turn", 30)], num_inference_steps=1, seed=3)
        np.testing.assert_allclose(made["joints"], scene.joints[0], atol=1e-5)
    for wrong in ("they bow", "they bow:", ":20", "they bow:0", "they bow:x"):
        message = f"error: --timeline: expected PROMPT:FRAMES, as 'two people bow:90', got {wrong!r}"
        refused(run("generate", "--timeline", wrong, *options), message)
    refused(run("generate", "they bow", "--timeline", "they bow:20", *options), "error: --timeline: expected no prompt")
    refused(run("generate", "--timeline", "they bow:7", *options), "error: num_frames: expected a value in [8, 40]")


def test_generate_draws_all_motions_in_one_picture(run: Run, model: Path, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    options = ("--model", model, "--frames", 9, "--steps", 1, "--format", "npz", "--grid", "--size", "160x128")
    result = run("generate", "they bow", "they turn", *options)
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.split()] == ["they-bow.npz", "they-turn.npz", "grid.mp4"]
    assert next(ffmpeg.read_frames(str(tmp_path / "results" / "grid.mp4")))["size"] == (320, 128)


def test_same_seed_same_bytes_and_nothing_is_overwritten(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--frames", 16, "--steps", 2, "--format", "npz", "--out", "deep/er")
    for seed in (3, 3, 4):
        assert run("generate", "two people bow", "--seed", seed, *options).exit_code == 0
    names = ["two-people-bow.npz", "two-people-bow-2.npz", "two-people-bow-3.npz"]
    assert {path.name for path in (tmp_path / "deep" / "er").iterdir()} == set(names)
    first, second, third = (np.load(tmp_path / "deep" / "er" / name) for name in names)
    for key in ("joints", "motion"):
        assert first[key].tobytes() == second[key].tobytes()
        assert first[key].tobytes() != third[key].tobytes()


def test_prompts_of_a_file_in_batches(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.generate, "BATCH_SIZE", 2)
    (tmp_path / "prompts.txt").write_text("two people bow\n\n  they turn \nthe first dancer\n", encoding="utf-8")
    options = ("--model", model, "--frames", 16, "--steps", 1, "--format", "npz", "--seed", 5)
    result = run("generate", "they bow", "--prompts", "prompts.txt", *options)
    assert result.exit_code == 0, result.output
    found = {}
    for line in result.stdout.split():
        with np.load(tmp_path / line) as archive:
            found[str(archive["prompt"])] = int(archive["seed"])
    assert found == {"they bow": 5, "two people bow": 6, "they turn": 7, "the first dancer": 8}


def test_a_file_of_prompts_as_other_editors_write_it(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufefftwo people bow\r\n\r\x0cthey\u2028turn\x85left\r\n".encode())
    options = ("--model", model, "--frames", 16, "--steps", 1, "--format", "npz")
    result = run("generate", "--prompts", "prompts.txt", *options)
    assert result.exit_code == 0, result.output
    prompts = [str(np.load(tmp_path / line)["prompt"]) for line in result.stdout.split()]
    assert prompts == ["two people bow", "they turn left"]


def test_what_cannot_be_done_with_a_prompt_is_told_by_file_and_line(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text(f"bow\n\n{'bow ' * 40}\nbow\n")
    options = ("--model", model, "--frames", 16, "--steps", 1, "--format", "npz")
    refused(
        run("generate", "bow", "--prompts", "prompts.txt", *options),
        "prompts.txt: line 3: prompts: expected at most max_tokens=16 word pieces, got 41",
    )
    refused(run("generate", "bow", "bow " * 40, *options), "error: prompts: expected at most max_tokens=16")
    monkeypatch.setenv("INTERMOE_BACKEND", "abacus")
    refused(run("generate", "bow", *options), "got unknown backend 'abacus'")
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which sets nothing
    if not backends.available()["triton"].usable:
        monkeypatch.setenv("INTERMOE_BACKEND", "triton")
        refused(run("generate", "bow", *options), "INTERMOE_BACKEND='triton' cannot serve torch.float32 on cpu")
    assert not (tmp_path / "results").exists()


def test_unknown_words_are_reported(run: Run, model: Path) -> None:
    options = ("--model", model, "--frames", 16, "--steps", 1, "--format", "npz")
    with pytest.warns(UserWarning, match="^the model has never seen: astronauts, juggle .* can only guess$"):
        result = run("generate", "Two astronauts bow, two astronauts juggle", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("no_work")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "prompts: expected at least one"),
            (("bow", "  "), "expected words in every prompt"),
            (("",), "expected words in every prompt"),
            (("bow", "--prompts", "absent.txt"), "--prompts: [Errno 2] No such file or directory: 'absent.txt'"),
            (("bow", "--prompts", "utf16.txt"), "--prompts: utf16.txt: line 1: expected UTF-8 text, got UTF-16"),
            (("bow", "--prompts", "latin1.txt"), "--prompts: latin1.txt: line 2: expected UTF-8 text, got byte 0xe9"),
            (("bow", "--prompts", "nul.txt"), "--prompts: nul.txt: line 1: expected UTF-8 text, got a NUL byte"),
            (("bow", "--prompts", "empty"), "--prompts: [Errno 21] Is a directory: 'empty'"),
            (("--prompts", "blank.txt"), "prompts: expected at least one"),
            # as Python hands on an argument that is not UTF-8
            (("bow", "caf\udce9 dance"), r"prompts: expected UTF-8 text, got 'caf\udce9 dance'"),
            (("bow", "--frames", 0), "--frames: expected a value in ["),
            (("bow", "--frames", 7), "--frames: expected a value in ["),
            (("bow", "--frames", 100000), "--frames: expected a value in ["),
            (("bow", "--model", "nonsense"), "model: 'nonsense' is neither a shipped model"),
            (("bow", "--scheduler", "euler"), "--scheduler: expected one of ddim"),
            (("bow", "--steps", 0), "--steps: expected >= 1"),
            (("bow", "--guidance", 0.5), "--guidance: expected >= 1"),
            (("bow", "--seed", -1), "--seed: expected a value in"),
            (("bow", "turn", "--seed", 2**63 - 1), "--seed: expected a value in [0, 2**63 - 2] for 2 prompts"),
            (("bow", "--device", "abacus"), "--device: expected a device of this machine, got 'abacus'"),
            (("bow", "--out", "file/below"), "is not a folder"),
            (("bow", "--out", "dangling"), "is not a folder"),
            (("bow", "--out", "x" * 300), "--out: [Errno 36] File name too long"),
            (("bow", "--format", "fbx"), "--format: expected one of npz, bvh, glb, amass"),
            (("bow", "--camera", "below"), "camera: expected one of side, front, top, follow, got 'below'"),
            (("bow", "--size", "640"), "--size: expected WIDTHxHEIGHT"),
            (("bow", "--size", "641x640"), "size: expected even numbers"),
            (("bow", "--size", "²x²"), "--size: expected WIDTHxHEIGHT"),
        ],
    )
    def test_generate(self, run: Run, model: Path, tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "dangling").symlink_to("nothing")
        texts = {
            "utf16": "bow".encode("utf-16"),
            "latin1": b"bow\rcaf\xe9",
            "nul": b"b\0ow",
            "blank": b"\xef\xbb\xbf\r\n\x0c",
        }
        for name, content in texts.items():
            (tmp_path / f"{name}.txt").write_bytes(content)
        if "--model" not in arguments:
            arguments = (*arguments, "--model", model)
        refused(run("generate", *arguments), message)
        assert not (tmp_path / "results").exists()

    def test_an_unwritable_folder(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
        refused(run("generate", "bow", "--model", model), "--out: no permission to write")

    def test_a_missing_video_library(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        refused(run("generate", "bow", "--model", model), "pip install 'intermoe[viz]'")

    def test_evaluate(self, run: Run, model: Path) -> None:
        refused(run("evaluate", "kinematics", "--data", ".", "--model", model, "--seeds", "1,x"), "--seeds: expected")
        refused(run("evaluate", "kinematics", "--data", ".", "--model", "nonsense"), "model: 'nonsense'")

    def test_train(self, run: Run, tmp_path: Path) -> None:
        refused(run("train", "vae", "absent.yaml", "--out", "run"), "config: 'absent.yaml' is neither a file")
        (tmp_path / "bad.yaml").write_text("seeed: 3\n", encoding="utf-8")
        for kind in ("vae", "denoiser"):
            refused(run("train", kind, "bad.yaml", "--out", "run"), "unknown key 'seeed'")
        refused(
            run("train", "vae", "salsa_vae", "--out", "run", "--data", "absent"),
            "data.root: expected a folder, got absent",
        )
        assert not (tmp_path / "run").exists()

    def test_stats(self, run: Run) -> None:
        refused(run("stats", "--data", ".", "--out", "stats.txt"), "--out: expected a .json or .npz file")
        refused(run("stats", "--data", "absent", "--out", "stats.json"), "absent")
        Path("stats.json").write_text("mine", encoding="utf-8")
        refused(run("stats", "--data", ".", "--out", "stats.json"), "--out: stats.json")


def test_a_prompt_that_is_too_long_is_refused_before_sampling(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(InterMoEPipeline, "sample")
    refused(run("generate", "bow " * 500, "--model", model), "expected at most max_tokens")


def test_train_calls_the_trainers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    for name in ("run_vae", "run_denoiser"):

        def record(*arguments: object, _name: str = name, **options: object) -> Path:
            calls.append((_name, *arguments, options))
            return tmp_path / "model"

        monkeypatch.setattr(f"intermoe.train.{name}", record)
    (tmp_path / "own.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert run("train", "vae", "own.yaml", "--out", "a", "--data", "d").exit_code == 0
    assert run("train", "denoiser", "salsa_denoiser", "--out", "b", "--vae", "a/model", "--resume").exit_code == 0
    assert calls[0] == ("run_vae", Path("own.yaml"), Path("a"), {"resume": False, "data": Path("d"), "init": None})
    assert calls[1][1].name == "salsa_denoiser.yaml"
    assert calls[1][2:] == (Path("b"), {"vae": Path("a/model"), "data": None, "resume": True})


def test_stats_are_of_the_split_as_it_is_asked_for(run: Run, two_people: Callable[..., Path], tmp_path: Path) -> None:
    data = two_people(tmp_path / "data", {"train": {"1": 30}, "val": {"2": 40, "3": 50}}, "two people sway")
    means = {}
    for name, augment in (("plain", "--no-augment"), ("drawn", "--augment")):
        result = run("stats", "--data", data, "--split", "val", "--out", f"new/{name}.json", augment)
        assert result.exit_code == 0, result.output
        means[name] = Statistics.load(tmp_path / "new" / f"{name}.json").mean
    items = InterHumanDataset(data, "val")
    frames = torch.cat([items[i]["motion"].flatten(0, 1) for i in range(2)]).double()
    np.testing.assert_allclose(means["plain"], frames.mean(dim=0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(means["drawn"], means["plain"], atol=1e-3), "mirrored and exchanged persons are others"


def test_evaluate_kinematics_of_a_folder(
    run: Run, model: Path, two_people: Callable[..., Path], tmp_path: Path
) -> None:
    split = two_people(tmp_path / "data", {"val": {"105": 40}}, "two people sway")
    options = ("--model", model, "--seeds", "0,7", "--steps", 1, "--out", "numbers.json")
    result = run("evaluate", "kinematics", "--data", split, *options)
    assert result.exit_code == 0, result.output
    for row in ("ground truth", "reconstruction", "generation"):
        assert row in result.stdout
    written = (tmp_path / "numbers.json").read_bytes()
    assert json.loads(written)["settings"]["seeds"] == [0, 7]
    refused(run("evaluate", "kinematics", "--data", split, *options), "--out: numbers.json: exists already")
    assert (tmp_path / "numbers.json").read_bytes() == written


def test_help_and_version_are_light() -> None:
    """No heavy library is imported before a command needs it."""
    heavy = "{'torch', 'diffusers', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)"
    code = f"import sys, intermoe.cli; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    for arguments in (["--help"], ["generate", "--help"], ["train", "vae", "--help"], ["evaluate", "--help"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    version = CliRunner().invoke(cli.app, ["--version"])
    assert version.exit_code == 0
    assert version.stdout[0].isdigit()


def test_the_pipeline_needs_no_pretrained_library() -> None:
    """Generation with an own text encoder must not pay for importing transformers."""
    code = "import sys, intermoe.pipeline; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no more')", 1, "no more"),
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
        ("pass", 0, ""),
    ],
)
def test_leaving_early_loses_nothing(ending: str, status: int, words: str) -> None:
    script = f"""
import atexit, threading, time
from intermoe import backends, cli
from intermoe.cli.__main__ import main
def command():
    atexit.register(print, "handled")
    threading.Thread(target=lambda: (time.sleep(0.2), print("threaded"))).start()
    print("begun")
    {ending}
cli.app = command
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status
    assert ended.stdout.split() == ["begun", "threaded", "handled"]
    assert words in ended.stderr


@pytest.mark.parametrize(
    ("streams", "status", "out", "err"),
    [
        ("", 0, b"b\xf6w \\u2603\n", b"warning: \\u2603\n"),
        (">&-", 0, b"", b"warning: \\u2603\n"),
        ("2>&-", 0, b"b\xf6w \\u2603\n", b""),
        ("<&- >&- 2>&-", 0, b"", b""),
        ("> /dev/full", 1, b"", b"warning: \\u2603\nerror: [Errno 28] No space left on device\n"),
        ("2> /dev/full", 1, b"b\xf6w \\u2603\n", b""),
        ("> /dev/full 2> /dev/full", 1, b"", b""),
        ("| true", 1, b"", b"warning: \\u2603\n"),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_work_is_done_whatever_can_be_told(tmp_path: Path, streams: str, status: int, out: bytes, err: bytes) -> None:
    """Streams that are closed, full or of few letters: no traceback, and nothing stray in a file that is written."""
    script = """
import os, sys, time, warnings
from intermoe import cli
from intermoe.cli.__main__ import main
def command():
    with open(sys.argv[1], "w") as file:
        if sys.argv[2] == "closed":
            os.write(1, b"stray")
        time.sleep(0.3)  # who listens is gone
        print("b\\u00f6w \\u2603")
        warnings.warn("\\u2603")
        file.write("numbers")
cli.app = command
main()
"""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    closed = "closed" if ">&-" in streams.split() else "open"
    command = f"{sys.executable} {tmp_path}/script.py {tmp_path}/numbers {closed} {streams}"
    command = f"bash -c 'set -o pipefail; {command}'"
    letters = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUNBUFFERED": ""}
    ended = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False, env=letters)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, out, err)
    assert (tmp_path / "numbers").read_text() == "numbers"


@pytest.mark.parametrize(("ending", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_leaves_nothing_half_written(tmp_path: Path, ending: str, status: int) -> None:
    script = f"""
import os, signal, sys, time
from pathlib import Path
from intermoe import cli
from intermoe.cli.__main__ import main
from intermoe.files import replacing, replacing_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one of nohup this
def command():
    folder = Path(sys.argv[1])
    with replacing_folder(folder / "model") as model, replacing(folder / "numbers.json") as numbers:
        (model / "part").touch()
        numbers.touch()
        os.kill(os.getpid(), signal.{ending})
        time.sleep(60)
cli.app = command
main()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status
    assert ended.stderr == f"error: stopped by {ending}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ending", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_that_comes_while_an_object_is_freed_ends_the_command(ending: str, status: int) -> None:
    """There Python drops what a signal's handler raises, and work would go on after it was said to be stopped."""
    script = f"""
import os, signal, time, weakref
from intermoe import cli
from intermoe.cli.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
class Freed:
    pass
def command():
    freed = Freed()
    reference = weakref.ref(freed, lambda _: os.kill(os.getpid(), signal.{ending}))
    del freed
    time.sleep(60)
cli.app = command
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (status, f"error: stopped by {ending}\n")
