"""Activities that are recognised: a model that plays back real motion, and what the report says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli
from intermoe.data import InterHumanDataset
from intermoe.data.activities import read_wordings, shipped_wordings
from intermoe.eval import activities as evaluation
from intermoe.eval.activities import (
    Asked,
    captions_by_activity,
    check_paraphrases,
    evaluate_activities,
)
from intermoe.eval.kinematics import real_clips
from intermoe.metrics.clips import METRICS, Clip, measure
from intermoe.motion.interhuman import joints
from intermoe.motion.representation import REPRESENTATIONS


@pytest.fixture(scope="module")
def folders(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of clips, of bowing and of waving with a hand up, whose captions are those words."""
    root = tmp_path_factory.mktemp("activities")
    made = []
    for number, name in enumerate(("bow", "wave")):
        splits = {"train": {f"{number}1": 40, f"{number}2": 44}, "val": {f"{number}3": 40}}
        made.append(two_people(root / name, splits, f"Two people {name}.\nThey {name}."))
    for path in made[1].glob("motions_processed/*/*.npy"):
        values = np.load(path)
        values[:, 3 * 20 + 2] += 1.0
        np.save(path, values)
    return made


def opened(folders: list[Path], split: str) -> list[InterHumanDataset]:
    return [InterHumanDataset(folder, split, training=False) for folder in folders]


class Playback:
    """Makes of a prompt what the first clip of bowing shows where it is asked to bow, else of waving."""

    device, frame_multiple = torch.device("cpu"), 4
    has_latents, representation = True, REPRESENTATIONS["interhuman"]

    def __init__(self, folders: list[Path]) -> None:
        self.motion = {f.name: InterHumanDataset(f, "train", training=False)[0]["motion"] for f in folders}
        self.calls: list[Any] = []

    def check(self, prompts: Any, num_frames: int) -> None:
        assert prompts

    def encode(self, motion: Any) -> Any:
        return motion

    decode = encode

    def __call__(
        self, prompts: Any, num_frames: int, num_inference_steps: int, guidance_scale: float, seed: int
    ) -> Any:
        self.calls.append((list(prompts), num_frames, seed))
        which = ["bow" if "bow" in prompt else "wave" for prompt in prompts]
        return SimpleNamespace(joints=joints(torch.stack([self.motion[name][:, :num_frames] for name in which])))


def test_the_report(folders: list[Path], tmp_path: Path) -> None:
    pipeline: Any = Playback(folders)
    paraphrases = {"bow": ["both incline their heads"], "wave": ["hands are swung in greeting"]}
    done: list[tuple[int, int]] = []
    report = evaluate_activities(
        pipeline,
        opened(folders, "train"),
        opened(folders, "val"),
        Asked(captions=3, paraphrases=paraphrases, num_frames=32),
        seeds=(0, 2),
        num_inference_steps=3,
        guidance_scale=1.5,
        batch_size=3,
        judge_steps=60,
        progress=lambda *each: done.append(each),
    )
    assert list(report.rows) == ["real, trained on", "real, held out", "reconstruction", "captions", "paraphrases"]
    assert [row["clips"] for row in report.rows.values()] == [4, 2, 2, 8, 4]
    assert report.rows["real, trained on"]["recognised"] == 100
    assert report.rows["captions"]["recognised"] == 100
    assert report.rows["paraphrases"]["recognised"] == 50  # what says no "bow" is played back as waving
    assert report.by_activity["paraphrases"]["bow"]["taken_for"] == {"wave": 2}
    trained_on, held_out = ([c for d in opened(folders, s) for c in real_clips(d)] for s in ("train", "val"))
    beside = measure(held_out, trained_on, paired=False)["pelvis_wasserstein_cm"]
    assert report.rows["real, held out"]["pelvis_wasserstein_cm"] == beside > 1
    assert report.rows["real, trained on"]["pelvis_wasserstein_cm"] == 0
    assert report.recognised_by_seed["paraphrases"] == {0: 50, 2: 50}
    assert [(len(prompts), seed) for prompts, _, seed in pipeline.calls] == [
        (3, 0), (1, 3), (3, 8), (1, 11), (2, 0), (2, 4)
    ]  # fmt: skip
    assert {prompt for prompts, _, _ in pipeline.calls[:2] for prompt in prompts} == {
        "Two people bow.", "They bow.", "Two people wave.", "They wave."
    }  # fmt: skip
    assert done[-1] == (12, 12)
    report.save(tmp_path / "activities.json")
    saved = json.loads((tmp_path / "activities.json").read_text(encoding="utf-8"))
    assert saved["recognised_by_seed"]["captions"] == {"0": 100, "2": 100}
    assert saved["settings"] == {
        "data": ["bow", "wave"], "activities": 2, "captions": 3, "num_frames": 32, "seeds": [0, 2],
        "num_inference_steps": 3, "guidance_scale": 1.5, "judge_steps": 60,
    }  # fmt: skip
    assert len(saved["by_activity"]["captions"]["wave"]["closest_wrists_cm"]) == 4
    assert report.table()[2] == ["activity recognised (%)", "100", "100", "100", "100", "50"]
    assert report.activity_table()[1] == ["bow", "4 of 4", "", "0 of 2", "wave 2"]


def test_paraphrases_are_read_and_compared_with_captions(folders: list[Path], tmp_path: Path) -> None:
    captions = captions_by_activity(opened(folders, "train"))
    assert captions == {"bow": ["Two people bow.", "They bow."], "wave": ["Two people wave.", "They wave."]}
    path = tmp_path / "words.tsv"
    path.write_text("# a word\nbow\tboth incline\n\nwave\thi\nbow\tdown\n", encoding="utf-8")
    assert read_wordings(path) == {"bow": ["both incline", "down"], "wave": ["hi"]}
    check_paraphrases(read_wordings(path), captions)
    for content, message in (("bow both\n", "line 1: expected an activity, a tabulator"), ("# none\n", "got none")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_wordings(path)
    with pytest.raises(ValueError, match="paraphrases: expected activities of bow, wave, got 'nod'"):
        check_paraphrases({"nod": ["x"]}, captions)
    with pytest.raises(ValueError, match="paraphrases: expected what no clip is captioned with, got 'they  BOW'"):
        check_paraphrases({"bow": ["they  BOW"]}, captions)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeffbow\tboth incline\r\nwave\thi\r".encode(), {"bow": ["both incline"], "wave": ["hi"]}),
        ("bow\tboth\u2028incline\x0cdeeply\n".encode(), {"bow": ["both incline deeply"]}),
        (b"bow\tdown\nwave\tdown\n", {"bow": ["down"], "wave": ["down"]}),
        ("bow\tdown\n".encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
        ("bow\tdown\nwave\tà bientôt\n".encode("latin-1"), "line 2: expected UTF-8 text, got byte 0xe0"),
        (b"bow\tdown\nbow\ta\0b\n", "line 2: expected UTF-8 text, got a NUL byte"),
        (b"bow\tdown\nbow\tdeep\tdown\n", "line 2: expected an activity, a tabulator and a caption, got 'bow\\tdeep"),
        (b"bow\tdown\nbow\n", "line 2: expected an activity, a tabulator and a caption, got 'bow'"),
        (b"bow\tdown\n\n# down\nbow\tdown \n", "line 4: expected a caption of its own, got that of line 1 again"),
        (b"", "expected lines of an activity, a tabulator and a caption, got none"),
        (b"bow\t" + b"a\t" * 10**6 + b"b", "line 1: expected an activity"),
    ],
)  # fmt: skip
def test_captions_by_activity_of_any_file_are_read_or_refused_by_line(
    content: bytes, expected: dict[str, list[str]] | str, tmp_path: Path
) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes(content)
    if isinstance(expected, dict):
        assert read_wordings(path) == expected
        return
    with pytest.raises(ValueError, match="expected") as error:
        read_wordings(path)
    assert str(error.value).startswith(f"{path}: {expected}")
    assert len(str(error.value)) < len(str(path)) + 200


def test_the_shipped_paraphrases_are_no_wordings_of_training() -> None:
    shipped = read_wordings(shipped_wordings("duets", "paraphrases"))
    wordings = read_wordings(shipped_wordings("duets", "wordings"))
    assert {*shipped} - {*wordings} == {"salsa"}
    check_paraphrases(shipped, {"salsa": [], **wordings})


def test_the_shipped_paraphrases_are_of_the_data_and_no_captions(shared_folder: Path) -> None:
    shipped = read_wordings(shipped_wordings("duets", "paraphrases"))
    assert {len(each) for each in shipped.values()} == {2}
    folders = [shared_folder / "data" / name for name in ("duets", "salsa")]
    if not all(folder.exists() for folder in folders):
        pytest.skip(f"real motion is absent: {folders[0]} not found")
    captions = captions_by_activity([each for split in ("train", "val") for each in opened(folders, split)])
    check_paraphrases(shipped, captions)
    assert set(shipped) == set(captions)


def test_the_command(folders: list[Path], tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_pipeline.save_pretrained("model")
    data = [word for folder in folders for word in ("--data", str(folder))]
    command = ["evaluate", "activities", *data, "--model", "model", "--frames", "16", "--captions", "1"]
    refused = CliRunner().invoke(cli.app, [*command, "--paraphrases", "duets"])
    assert refused.exit_code == 2
    assert "paraphrases: expected activities of bow, wave, got 'handshake'" in refused.stderr
    refused = CliRunner().invoke(cli.app, [*command, "--paraphrases", "absent.tsv"])
    assert refused.exit_code == 2
    assert "error: --paraphrases: " in refused.stderr
    del command[command.index("--frames") : command.index("--frames") + 2]  # what the model can, 40, not 90
    result = CliRunner().invoke(cli.app, [*command, "--steps", "1", "--judge-steps", "1", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert "activity recognised (%)" in result.stdout
    assert json.loads(Path("activities.json").read_text(encoding="utf-8"))["rows"]["captions"]["clips"] == 2


def test_places_by_hand() -> None:
    """Two clips of bowing that are first and third, one that is fourth, and one whose activity the judge never saw."""
    clips = [Clip(np.zeros((2, 4, 22, 3)), activity=name) for name in ("bow", "bow", "bow", "nod")]
    ranked = [["bow", "a", "b", "c"], ["a", "b", "bow", "c"], ["a", "b", "c", "bow"], ["bow", "a", "b", "c"]]
    assert evaluation._recognised(clips, ranked) == {"recognised": 25, "among_three": 50}


def test_bad_arguments(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "train_judge", lambda *_, **__: pytest.fail("work began"))
    sets = opened(folders, "train"), opened(folders, "val")
    pipeline: Any = Playback(folders)
    with pytest.raises(ValueError, match="captions: expected >= 1, got 0"):
        Asked(captions=0)
    with pytest.raises(ValueError, match="batch_size: expected >= 1, got 0"):
        evaluate_activities(pipeline, *sets, batch_size=0)
    with pytest.raises(ValueError, match=r"seeds: expected at least one, none twice, got \(1, 1\)"):
        evaluate_activities(pipeline, *sets, seeds=(1, 1))
    with pytest.raises(ValueError, match="judge_steps: expected >= 1, got 0"):
        evaluate_activities(pipeline, *sets, judge_steps=0)
    for seeds in ((-1,), (0, 2**61)):  # each is multiplied by the four captions
        with pytest.raises(ValueError, match=r"seeds: expected numbers in \[0, 2305843009213693951\)"):
            evaluate_activities(pipeline, *sets, seeds=seeds)
    with pytest.raises(ValueError, match="train: expected two activities or more, got bow"):
        evaluate_activities(pipeline, sets[0][:1], sets[1][:1])
    with pytest.raises(ValueError, match="paraphrases: expected activities of split train, bow, got 'wave'"):
        Asked(paraphrases={"wave": ["hi"]}).prompts(sets[0][:1], sets[1])
    assert not pipeline.calls
    assert evaluation.CAPTIONS in evaluation.ActivityReport({}, {"captions": {}}, {}, {}).activity_table()[0]


def test_captions_are_drawn_by_chance_but_always_the_same() -> None:
    captions = {name: [f"{name} {number}" for number in range(30)] for name in ("bow", "wave")}
    drawn = evaluation._drawn(captions, 6)
    assert drawn == evaluation._drawn(captions, 6)
    for name, each in drawn.items():
        assert len(set(each)) == 6
        assert set(each) < set(captions[name])
        assert each != captions[name][:6]


def test_a_paraphrase_is_no_caption_of_what_was_held_out_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "captions_by_activity", lambda sets: {"bow": list(sets)})
    sets: Any = (["they bow"], ["they greet"])
    assert Asked(paraphrases={"bow": ["they nod"]}).prompts(*sets)["paraphrases"] == {"bow": ["they nod"]}
    for known in ("they bow", "They greet."):
        with pytest.raises(ValueError, match="expected what no clip is captioned with"):
            Asked(paraphrases={"bow": [known]}).prompts(*sets)


def test_what_each_activity_was_taken_for_by_hand() -> None:
    """Four of bowing, of which the judge takes two for waving and one for a nod; wrists in centimetres."""
    clip = np.zeros((2, 4, 22, 3))
    clip[1, :, 20:22, 0] = 0.4567
    clips = [Clip(clip, activity=name) for name in ("bow", "wave", "bow", "bow", "bow")]
    ranked = [[name, "rest"] for name in ("wave", "wave", "nod", "bow", "wave")]
    assert evaluation._by_activity(clips, ranked) == {
        "bow": {
            "clips": 4, "recognised": 1, "taken_for": {"wave": 2, "nod": 1}, "closest_wrists_cm": [45.7] * 4,
        },
        "wave": {"clips": 1, "recognised": 1, "taken_for": {}, "closest_wrists_cm": [45.7]},
    }  # fmt: skip


def test_a_report_of_rows_that_have_different_activities() -> None:
    found = {
        "captions": {
            "nod": {"clips": 4, "recognised": 1, "taken_for": {"wave": 2, "bow": 1}},
            "bow": {"clips": 3, "recognised": 3, "taken_for": {}},
        },
        "paraphrases": {
            "wave": {"clips": 5, "recognised": 4, "taken_for": {"nod": 1}},
            "nod": {"clips": 2, "recognised": 2, "taken_for": {}},
        },
        "real, held out": {"hug": {"clips": 1, "recognised": 1, "taken_for": {}}},
    }  # fmt: skip
    numbers = dict.fromkeys((key for name in METRICS for key in METRICS[name].titles), 0.0)
    rows: Any = {
        "captions": {**numbers, "clips": 1234, "recognised": 100 / 3, "among_three": 200 / 3},
        "paraphrases": {**numbers, "clips": 7, "recognised": 12.5, "among_three": 99.996},
    }
    report = evaluation.ActivityReport(rows, found, {}, {})
    assert report.activity_table() == [
        ["activity", "captions", "others taken for", "paraphrases", "others taken for"],
        ["bow", "3 of 3", "", "–", ""],
        ["nod", "1 of 4", "wave 2, bow 1", "2 of 2", ""],
        ["wave", "–", "", "4 of 5", "nod 1"],
    ]
    assert report.table()[:4] == [
        ["metric", "captions", "paraphrases"],
        ["clips", "1234", "7"],
        ["activity recognised (%)", "33.33", "12.5"],
        ["among the first three (%)", "66.67", "100"],
    ]
    assert len(report.table()) == 4 + len(numbers)


def test_what_is_taken_for_most_often_comes_first() -> None:
    clips = [Clip(np.zeros((2, 4, 22, 3)), activity="bow")] * 6
    ranked = [[name] for name in ("hug", "wave", "nod", "wave", "nod", "wave")]
    assert list(evaluation._by_activity(clips, ranked)["bow"]["taken_for"].items()) == [
        ("wave", 3), ("nod", 2), ("hug", 1)
    ]  # fmt: skip


def test_captions_are_drawn_from_one_stream_of_chance() -> None:
    """Of numpy's generator 0, so that a report is the same everywhere."""
    captions = {"bow": list("abcdefgh"), "wave": list("ijk"), "nod": list("lmnopq")}
    rng = np.random.default_rng(0)
    expected = {name: [each[i] for i in rng.permutation(len(each))][:4] for name, each in captions.items()}
    assert evaluation._drawn(captions, 4) == expected
    assert sorted(expected["wave"]) == ["i", "j", "k"]  # no more than there are


def test_activities_are_sorted_and_captions_in_order(folders: list[Path]) -> None:
    found = captions_by_activity(opened(folders[::-1], "train"))
    assert list(found.items()) == [
        ("bow", ["Two people bow.", "They bow."]),
        ("wave", ["Two people wave.", "They wave."]),
    ]


def test_the_judge_learns_from_what_was_trained_on_and_everything_is_checked_first(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = Playback(folders)
    checked: list[Any] = []
    monkeypatch.setattr(pipeline, "check", lambda prompts, frames: checked.append((list(prompts), frames)))
    asked = Asked(captions=1, paraphrases={"wave": ["a", "b", "c"], "bow": ["d", "e"]}, num_frames=20)
    learned: list[Any] = []

    def train_judge(clips: Any, *, steps: int) -> Any:
        assert [len(prompts) for prompts, _ in checked] == [2, 5]
        learned.append(([clip.joints.shape[1] for clip in clips], steps))
        return SimpleNamespace(names=["bow", "wave"], ranked=lambda clip: ["wave", "bow"])

    monkeypatch.setattr(evaluation, "train_judge", train_judge)
    sets = opened(folders, "train"), opened(folders, "val")
    report = evaluate_activities(pipeline, *sets, asked, judge_steps=7, batch_size=2)
    assert learned == [([40, 44, 40, 44], 7)]
    assert checked[1] == (["a", "b", "c", "d", "e"], 20)
    assert checked[0][1] == 20
    assert report.recognised_by_seed == {"captions": {0: 50.0}, "paraphrases": {0: 60.0}}
    assert [row["recognised"] for row in report.rows.values()] == [50, 50, 50, 50, 60]
    bound = 2**63 // 5 - 1  # of the row that has more of them
    with pytest.raises(ValueError, match=rf"^seeds: expected numbers in \[0, {bound}\), got \({bound},\)$"):
        evaluate_activities(pipeline, *sets, asked, seeds=(bound,))

    def refuse(prompts: Any, frames: int) -> None:
        if "e" in prompts:
            raise ValueError("prompts: refused")

    monkeypatch.setattr(pipeline, "check", refuse)
    monkeypatch.setattr(evaluation, "train_judge", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"^prompts: refused$"):
        evaluate_activities(pipeline, *sets, asked)
