"""An evaluation: what it draws, that it can stop, go on and be shared, and what it reports."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, MotionDataset
from intermoe.eval.estimate import estimate
from intermoe.eval.protocol import PROTOCOLS, SOURCES, Protocol, Published
from intermoe.eval.report import EvaluationReport
from intermoe.eval.runner import (
    GENERATED,
    MULTIMODAL,
    REFERENCE,
    TRUTH,
    Evaluation,
    EvaluationSettings,
    digest,
    evaluate,
)
from intermoe.files import locked

Make = Callable[..., Evaluation]


@pytest.fixture
def make(tiny_pipeline: Any, tiny_evaluator: Any, bowing: Path, tmp_path: Path) -> Make:
    def build(folder: str = "out", *, keep_motions: bool = True, **changes: Any) -> Evaluation:
        dataset = MotionDataset(
            DATA_SETS["interhuman"], bowing, "test", min_frames=8, max_frames=40, swap_persons=True, training=True
        )
        values = {"data": "interhuman", "split": "test", "items": len(dataset), "model": "m", "evaluator": "e"}
        small = {"batch_size": 3, "mm_captions": 2, "mm_samples": 3, "num_inference_steps": 2, "generation_batch": 4}
        settings = EvaluationSettings(**{**values, **small, **changes})
        return Evaluation(
            tiny_pipeline,
            tiny_evaluator,
            dataset,
            PROTOCOLS["interhuman"],
            settings,
            tmp_path / folder,
            keep_motions=keep_motions,
        )

    return build


def files(evaluation: Evaluation) -> set[str]:
    return {path.name for path in (evaluation.folder / "pieces" / "00").iterdir()}


def test_numbers_and_files(make: Make) -> None:
    evaluation = make()
    done: list[tuple[int, int]] = []
    rows = evaluate(evaluation, 2, progress=lambda *counts: done.append(counts))
    assert len(rows) == 2
    assert rows[0] != rows[1]
    assert done == [(n, 16) for n in range(1, 17)]
    assert files(evaluation) == {
        *(f"{kind}-000{number}.npz" for kind in (TRUTH, REFERENCE, GENERATED, MULTIMODAL) for number in (0, 1))
    }
    for row in rows[0].values():
        assert row["fid"] >= 0
        assert 0 <= row["r_precision_1"] <= row["r_precision_2"] <= row["r_precision_3"] <= 1
        assert row["mm_dist"] > 0
    assert rows[0]["ground truth"]["multimodality"] is None
    assert rows[0]["model"]["multimodality"] > 0
    assert rows[0]["model"]["multimodality_scaled"] == pytest.approx(3 * rows[0]["model"]["multimodality"])


def test_pieces_hold_every_motion_once(make: Make) -> None:
    evaluation = make()
    evaluate(evaluation, 1)
    pieces = evaluation.pieces(0)
    for kind in (TRUTH, REFERENCE, GENERATED):
        assert sorted(draw for p in pieces if p.role == kind for draw in p.draws) == [(i, 0) for i in range(7)]
    drawn = sorted(draw for piece in pieces if piece.role == MULTIMODAL for draw in piece.draws)
    assert len({index for index, _ in drawn}) == 2
    assert [sample for _, sample in drawn] == [1, 2, 3, 1, 2, 3]
    with np.load(evaluation.folder / "pieces" / "00" / "generated-0001.npz") as arrays:
        assert arrays["motion"].shape == (3, 2, 40, 262)
        assert arrays["motion"].dtype == np.float32
        lengths, captions = arrays["lengths"].tolist(), arrays["captions"].tolist()
        assert lengths == [22, 31, 40]
        embedded = evaluation.evaluator.embed_motion(torch.from_numpy(arrays["motion"]), torch.tensor(lengths))
        np.testing.assert_allclose(arrays["motion_embedding"], embedded.detach().numpy(), atol=1e-6)
        text = evaluation.evaluator.embed_text(captions).detach().numpy()
        np.testing.assert_allclose(arrays["text_embedding"], text, atol=1e-6)
    kept = {}
    for path in sorted((evaluation.folder / "pieces" / "00").glob("*.npz")):
        with np.load(path) as arrays:
            kept.setdefault(path.name.partition("-")[0], set()).add("motion" in arrays)
    assert kept.pop("truth", {False}) == kept.pop("reference", {False}) == {False}  # the data are there already
    assert set(map(frozenset, kept.values())) == {frozenset({True})}


def test_it_goes_on_where_it_stopped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(make("whole"), 2)
    evaluation = make("stopped")
    count, do = 0, Evaluation.do

    def stopping(self: Evaluation, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        do(self, *arguments)

    monkeypatch.setattr(Evaluation, "do", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, 2)
    (evaluation.folder / "pieces" / "00" / ".truth-0000.dead.npz").touch()
    monkeypatch.setattr(Evaluation, "do", do)
    done: list[tuple[int, int]] = []
    assert evaluate(make("stopped"), 2, progress=lambda *counts: done.append(counts)) == expected
    assert done[-1] == (11, 11)
    assert not list(evaluation.folder.rglob(".*"))
    monkeypatch.setattr(Evaluation, "do", lambda *_: pytest.fail("work began"))
    assert evaluate(make("stopped"), 2) == expected


def test_results_of_something_else_are_not_gone_on_with(
    make: Make, bowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(make(), 1)
    other = Path(shutil.copytree(bowing, tmp_path / "other"))
    evaluation = make()
    evaluation.dataset = MotionDataset(DATA_SETS["interhuman"], other, "test", min_frames=8, max_frames=40)
    evaluation.open_folder()  # the same data at another place
    (other / "annots" / "1.txt").write_text("Two people bow.", encoding="utf-8")
    evaluation.dataset = MotionDataset(DATA_SETS["interhuman"], other, "test", min_frames=8, max_frames=40)
    with pytest.raises(ValueError, match=r"with the same settings, got others: content was '\w+', is '\w+'$"):
        evaluate(evaluation, 1)
    evaluation = make()
    evaluation.protocol = dataclasses.replace(evaluation.protocol, scale=5.0)
    with pytest.raises(ValueError, match=r"got others: protocol was .*'scale': 6.0.*, is .*'scale': 5.0"):
        evaluate(evaluation, 1)
    with pytest.raises(ValueError, match=r"got others: seed was 0, is 1$"):
        evaluate(make(seed=1), 1)


def test_a_digest_is_of_all_that_a_model_is(tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    found = [digest(tmp_path)]
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = bytearray((tmp_path / name).read_bytes())
        content[-2] ^= 1
        (tmp_path / name).write_bytes(content)
        found.append(digest(tmp_path))
    assert len(set(found)) == 4


def test_two_at_once_in_one_folder(make: Make) -> None:
    evaluation = make()
    evaluation.folder.mkdir()
    with (
        locked(evaluation.folder / ".lock", ""),
        pytest.raises(FileExistsError, match="another process is evaluating here"),
    ):
        evaluate(evaluation, 1)


def test_captions_are_checked_before_anything_is_made(make: Make, bowing: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bowing, tmp_path / "other"))
    (other / "annots" / "5.txt").write_text("They bow.\n" + "bow " * 20, encoding="utf-8")
    evaluation = make()
    evaluation.dataset = MotionDataset(DATA_SETS["interhuman"], other, "test", min_frames=8, max_frames=40)
    with pytest.raises(ValueError, match=r"split 'test', item '5': prompts: expected at most max_tokens=16"):
        evaluate(evaluation, 1)
    assert not evaluation.folder.exists()


def test_what_is_not_finite_or_not_whole_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = make()
    embed = type(evaluation.evaluator).embed_motion
    with monkeypatch.context() as patch:
        patch.setattr(
            type(evaluation.evaluator), "embed_motion", lambda *a: embed(*a).index_fill(0, torch.tensor([1]), math.nan)
        )
        with pytest.raises(FloatingPointError, match=r"truth-0000.npz: .* got others in motion_embedding of items 3$"):
            evaluate(evaluation, 1)
    for piece in evaluation.pieces(0):
        evaluation.do(0, piece)
    path = evaluation.folder / "pieces" / "00" / "generated-0001.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"generated-0001.npz: expected a whole piece"):
        evaluate(evaluation, 1)
    path.unlink()
    evaluate(evaluation, 1)
    (evaluation.folder / "replication-00.json").write_text("{")
    with pytest.raises(ValueError, match=r"replication-00.json: expected a file of this evaluation"):
        evaluate(evaluation, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["motion", "text"])
def test_one_number_of_an_embedding_that_is_not_finite_is_enough(
    side: str, value: float, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = make()
    kind = type(evaluation.evaluator)
    embed = getattr(kind, f"embed_{side}")

    def spoilt(*given: Any) -> torch.Tensor:
        found: torch.Tensor = embed(*given).clone()
        found[1, 2] = value
        return found

    monkeypatch.setattr(kind, f"embed_{side}", spoilt)
    with pytest.raises(FloatingPointError, match=rf"truth-0000.npz: .* got others in {side}_embedding of items 3$"):
        evaluation.make(0, evaluation.pieces(0)[0], 1)


def test_processes_share_the_work(make: Make) -> None:
    expected = evaluate(make("one"), 1)
    evaluation = make("three")
    evaluation.open_folder()
    shares = [evaluation.missing(0)[rank::3] for rank in range(3)]
    for share in shares:
        for piece in share:
            make("three").do(0, piece)
    assert evaluation.missing(0) == []
    assert [evaluation.finish(0)] == expected


def test_batches_of_generation_change_nothing_but_rounding(make: Make) -> None:
    for row, other in zip(
        evaluate(make("a"), 1)[0].values(), evaluate(make("b", generation_batch=3), 1)[0].values(), strict=True
    ):
        known = {key: value for key, value in row.items() if value is not None}
        assert known == pytest.approx({key: other[key] for key in known}, rel=1e-3, abs=1e-5)


def test_a_motion_is_the_same_whatever_shares_its_batch(tiny_pipeline: Any) -> None:
    prompts, lengths, seeds = ["two people bow", "one of them turns", "people"], [40, 9, 22], [5, 6, 7]
    together = tiny_pipeline.sample(prompts, lengths, seeds, num_inference_steps=3)
    assert [tuple(motion.shape) for motion in together] == [(2, length, 262) for length in lengths]
    alone = tiny_pipeline.sample(prompts[1:2], lengths[1:2], seeds[1:2], num_inference_steps=3)
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=1e-4)
    same = tiny_pipeline(prompts[:1], num_frames=40, num_inference_steps=3, seed=5)
    torch.testing.assert_close(same.motion[0], together[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="lengths, seeds: expected 3 of each"):
        tiny_pipeline.sample(prompts, lengths[:2], seeds)


@pytest.mark.parametrize("straightened", ["rigid_bones", "planted_feet", "on_floor", "smooth"])
def test_what_is_straightened_over_time_ends_with_the_motion(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch, straightened: str
) -> None:
    """Bones have their mean length over a motion; that of a short one must not hear of its batch's padding."""
    config = dataclasses.replace(tiny_pipeline.config, **{straightened: True})
    monkeypatch.setattr(tiny_pipeline, "config", config)
    together = tiny_pipeline.sample(["two people bow", "people"], [9, 40], [5, 6], num_inference_steps=2)
    alone = tiny_pipeline.sample(["two people bow"], [9], [5], num_inference_steps=2)
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=1e-4)


def test_persons_change_places(make: Make) -> None:
    evaluation = make()
    places = set()
    for replication in range(6):
        item = evaluation._draw(replication, TRUTH, 1)
        again = make()._draw(replication, TRUTH, 1)
        assert torch.equal(item["motion"], again["motion"])
        places.add(bool(item["motion"][0, 0, [0, 2]].norm() < 1e-5))  # person 1 of the representation starts at 0
    assert places == {True, False}


def test_cropped_motion_is_of_whole_units(make: Make) -> None:
    evaluation = make()
    evaluation.protocol = PROTOCOLS["interx"]
    lengths = {evaluation._draw(replication, TRUTH, 1)["motion"].shape[1] for replication in range(12)}
    assert lengths == {28, 24}


def test_generated_motion_need_not_be_kept(make: Make) -> None:
    evaluation = make(keep_motions=False)
    assert evaluate(evaluation, 1) == evaluate(make("kept"), 1)
    assert not (evaluation.folder / "pieces" / "00").exists()


def test_a_folder_belongs_to_its_settings(make: Make) -> None:
    evaluate(make(mm_captions=0), 1)
    with pytest.raises(ValueError, match="got others: batch_size was 3, is 2, seed was 0, is 1"):
        evaluate(make(mm_captions=0, batch_size=2, seed=1), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8}, "batch_size: expected a value in"),
        ({"mm_captions": 8}, "mm_captions: expected a value in"),
        ({"mm_samples": 1}, "mm_samples: expected >= 2"),
        ({"guidance_scale": 0.5}, "guidance_scale: expected >= 1"),
        ({"generation_batch": 0}, "generation_batch: expected >= 1"),
    ],
)
def test_bad_settings_are_named(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_parts_must_fit(make: Make, tiny_evaluator: Any) -> None:
    evaluation = make()
    values = [evaluation.pipeline, tiny_evaluator, evaluation.dataset, evaluation.protocol, evaluation.settings]
    tiny_evaluator.representation = "interx"
    try:
        with pytest.raises(ValueError, match="evaluator: expected one for interhuman, the data, got one for interx"):
            Evaluation(*values, evaluation.folder)
    finally:
        tiny_evaluator.representation = "interhuman"


def test_estimate_writes_nothing(make: Make) -> None:
    evaluation = make()
    expected = estimate(evaluation, 2)
    assert expected.motions == 2 * (7 + 2 * 3)
    assert expected.seconds > 0
    assert not evaluation.folder.exists()
    evaluate(evaluation, 2)
    written = sum(path.stat().st_size for path in evaluation.folder.rglob("*.npz"))
    assert 0.5 * written < expected.bytes < 1.5 * written
    assert estimate(evaluation, 2) == dataclasses.replace(expected, seconds=0.0, motions=0, bytes=0)


def test_estimate_adds_the_steps_it_did_not_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of one kind costs 1 + 0.1 a step for every padded frame, whatever the clock of the machine."""
    evaluation = make(num_inference_steps=50)
    clock, made = [0.0], []

    def pretended(self: Evaluation, number: int, piece: Any, steps: int) -> dict[str, Any]:
        frames = len(piece.draws) * max(self.dataset.num_frames(index) for index, _ in piece.draws)
        clock[0] += frames * (1 + 0.1 * steps if piece.generated else 0.5)
        made.append(steps)
        return {"motion": np.zeros(frames, np.float32)}

    monkeypatch.setattr(Evaluation, "make", pretended)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    frames = [
        (piece.generated, len(piece.draws) * max(evaluation.dataset.num_frames(index) for index, _ in piece.draws))
        for piece in evaluation.pieces(0)
    ]
    expected = sum(count * (6.0 if generated else 0.5) for generated, count in frames)
    assert estimate(evaluation, 1).seconds == pytest.approx(expected)
    assert estimate(evaluation, 1, processes=4).seconds == pytest.approx(expected / 4)
    assert max(made) == 6


def test_report(make: Make, tmp_path: Path) -> None:
    evaluation = make()
    rows = evaluate(evaluation, 3)
    report = EvaluationReport(evaluation.settings, evaluation.protocol, tuple(rows), "tiny", "interclip", True)
    values = [row["model"]["fid"] for row in rows]
    mean, interval = report.rows()["model"]["fid"]
    assert mean == pytest.approx(np.mean(values))
    assert interval == pytest.approx(1.96 * np.std(values) / np.sqrt(3))
    report.save(tmp_path / "results.json")
    saved = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert saved["rows"]["ground truth"]["mm_dist"]["mean"] > 0
    assert saved["rows"]["ground truth"]["multimodality"] is None
    assert saved["settings"]["batch_size"] == 3
    assert "batches of 3 in place of 96" in saved["deviations_from_protocol"]
    assert {row["name"] for row in saved["published"]} >= {"ground truth", "InterGen", "InterMoE"}
    table = report.table()
    assert [line[0] for line in table[1:3]] == ["ground truth", "tiny"]
    assert all(line[0].endswith((" *", " †", " ‡")) for line in table[3:])
    assert (tmp_path / "results.md").read_text(encoding="utf-8").count("\n| ") == len(table)
    assert any(note.startswith("* as published") for note in report.notes())
    shutil.rmtree(evaluation.folder)


def test_the_published_protocol_has_no_deviation(make: Make) -> None:
    settings = dataclasses.replace(make().settings, items=1098, batch_size=96, mm_captions=100, mm_samples=30)
    rows = ({"model": {}},) * 20
    assert EvaluationReport(settings, PROTOCOLS["interhuman"], rows, "model", "interclip", False).deviations() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 32}, "batches of 32 in place of 96"),
        ({"split": "val"}, "split val in place of test"),
        ({"mm_captions": 99}, "texts for MultiModality 99 in place of 100"),
        ({"mm_samples": 20}, "motions for each of them 20 in place of 30"),
    ],
)
def test_every_deviation_is_told(make: Make, change: dict[str, Any], told: str) -> None:
    published = {"items": 1098, "batch_size": 96, "mm_captions": 100, "mm_samples": 30, "split": "test"}
    settings = dataclasses.replace(make().settings, **{**published, **change})
    report = EvaluationReport(settings, PROTOCOLS["interhuman"], ({"model": {}},) * 20, "model", "interclip", False)
    assert report.deviations() == [told]
    fewer = dataclasses.replace(report, replications=report.replications[:3], own_evaluator=True).deviations()
    assert set(fewer) == {
        told, "replications 3 in place of 20", "an evaluator trained by its user in place of the published one",
    }  # fmt: skip


def test_every_cell_and_note_of_a_report_is_of_its_own_number(make: Make) -> None:
    names = {
        "fid": "FID", "r_precision_1": "R@1", "r_precision_2": "R@2", "r_precision_3": "R@3", "mm_dist": "MM-Dist",
        "diversity": "Div", "multimodality": "MM", "multimodality_scaled": "MM scaled",
    }  # fmt: skip
    rows = tuple({"model": {name: 10.0 * place + by for place, name in enumerate(names, start=1)}} for by in (0, 2))
    row = Published("another", 1.5, (2.5, None, 3.5), 4.5, 5.5, 6.5, "published")
    protocol = Protocol("interhuman", 96, 6.0, 2.0, True, False, (row,))
    settings = dataclasses.replace(make().settings, batch_size=7)
    report = EvaluationReport(settings, protocol, rows, "tiny", "interclip", False)
    assert report.table() == [
        ["", *names.values()],
        ["tiny", *(f"{10 * place + 1}.000±{1.96 / math.sqrt(2):.3f}" for place in range(1, 9))],
        ["another *", "1.500", "2.500", "–", "3.500", "4.500", "5.500", "6.500", "–"],
    ]
    assert report.notes()[0] == (
        "2 replications, ± is the 95 % interval; texts among 7 motions; FID of embeddings times 6; Diversity times 6, "
        "divided by 2; MM (MultiModality) of embeddings as they are, scaled: times 6, divided by 2"
    )
    assert report.notes()[1:] == [*SOURCES, *(f"not the published protocol: {each}" for each in report.deviations())]
    told = report.to_dict()
    assert (told["model"], told["evaluator"], told["replications"]) == ("tiny", "interclip", list(rows))
    assert told["protocol"] == {"batch_size": 96, "scale": 6.0, "divide_by": 2.0}
    assert told["published"] == [{"name": "another", **row.numbers()}]
    assert told["rows"]["model"]["mm_dist"] == {"mean": 51.0, "interval_95": pytest.approx(1.96 / math.sqrt(2))}
