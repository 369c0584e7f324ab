"""What an evaluation draws and compares: rules whose breach would give numbers that look right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.cli.evaluate import app
from intermoe.data import DATA_SETS, MotionDataset
from intermoe.eval import protocol, runner
from intermoe.eval.protocol import DIVERSITY_PAIRS, MARKS, MULTIMODALITY_PAIRS, PROTOCOLS, SOURCES, Published
from intermoe.eval.runner import GENERATED, MULTIMODAL, REFERENCE, TRUTH, Evaluation, EvaluationSettings, evaluate

VALUES: dict[str, Any] = {
    "data": "interhuman", "split": "test", "items": 7, "model": "m", "evaluator": "e", "batch_size": 3,
    "mm_captions": 2, "mm_samples": 3, "num_inference_steps": 1, "generation_batch": 4,
}  # fmt: skip


@pytest.fixture
def make(tiny_pipeline: Any, tiny_evaluator: Any, bowing: Path, tmp_path: Path) -> Callable[..., Evaluation]:
    def build(**changes: Any) -> Evaluation:
        dataset = MotionDataset(DATA_SETS["interhuman"], bowing, "test", min_frames=8, max_frames=40, training=True)
        settings = EvaluationSettings(**{**VALUES, **changes})
        protocol = PROTOCOLS["interhuman"]
        return Evaluation(tiny_pipeline, tiny_evaluator, dataset, protocol, settings, tmp_path / "out")

    return build


def test_every_protocol_is_of_a_data_set_and_a_command() -> None:
    published = [name for name in DATA_SETS if name != "solo"]  # which nobody has published numbers of
    assert {name: protocol.data for name, protocol in PROTOCOLS.items()} == {name: name for name in published}
    commands = {command.name for command in app.registered_commands}
    assert commands == {"kinematics", "identity", "control", "activities", "routing", *PROTOCOLS}


def test_protocols_and_marks_as_published() -> None:
    found = {name: (p.batch_size, p.scale, p.divide_by, p.swaps_persons, p.crops) for name, p in PROTOCOLS.items()}
    assert found == {
        "interhuman": (96, 6.0, 2.0, True, False),
        "interx": (32, 1.0, 1.0, False, True),
        "humanml3d": (32, 1.0, 1.0, False, True),
    }
    assert MARKS == {"published": "*", "rerun": "†", "retrained": "‡"}
    for mark, word, source in zip(MARKS.values(), ("as published", "released weights", "anew"), SOURCES, strict=True):
        assert source.startswith(f"{mark} ")
        assert word in source
    row = Published("another", 1.5, (2.5, None), 3.5, None, 4.5, "rerun")
    assert row.mark == "†"
    assert row.numbers() == {
        "fid": 1.5, "mm_dist": 3.5, "diversity": None, "multimodality": 4.5,
        "r_precision_1": 2.5, "r_precision_2": None,
    }  # fmt: skip
    assert Published("plain").mark == "*"
    written = json.loads(files("intermoe.systems").joinpath("published.json").read_text(encoding="utf-8"))
    for name, each in PROTOCOLS.items():
        assert [(row.name, row.fid) for row in each.published] == [
            (row["name"], row.get("fid")) for row in written[name]
        ]
    assert (protocol.REPLICATIONS, protocol.CAPTIONS, protocol.SAMPLES) == (20, 100, 30)


def marked(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch, frames: int = 8) -> list[tuple[int, int]]:
    """Items whose first person is 1 and second 2, plus the number of the frame; returns the list of what is drawn."""
    asked: list[tuple[int, int]] = []

    def draw(index: int, epoch: int) -> dict[str, Any]:
        asked.append((index, epoch))
        motion = torch.stack([torch.full((frames, 262), float(person)) for person in (1, 2)])
        motion = motion + 10 * torch.arange(frames)[:, None]
        return {"name": str(index), "motion": motion, "caption": "the first dancer turns to the left"}

    monkeypatch.setattr(evaluation.dataset, "draw", draw)
    return asked


def test_persons_are_exchanged_with_their_caption(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = make()
    marked(evaluation, monkeypatch)
    flips = []
    for replication in range(40):
        for kind in (TRUTH, REFERENCE, GENERATED):
            item = evaluation._draw(replication, kind, replication % 7)
            flips.append(item["motion"][0, 0, 0].item() == 2.0)
            assert item["motion"][1, 0, 0].item() == (1.0 if flips[-1] else 2.0)
            who = "second" if flips[-1] else "first"
            assert item["caption"] == f"the {who} dancer turns to the left"
    assert np.mean(flips) == pytest.approx(0.5, abs=0.13)
    evaluation.protocol = dataclasses.replace(evaluation.protocol, swaps_persons=False)
    assert all(evaluation._draw(n, TRUTH, 0)["motion"][0, 0, 0] == 1.0 for n in range(20))


def test_crops_are_whole_units_at_any_place(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 frames 28, at 0 to 2, and in a third of the cases 24, at 0 to 6."""
    evaluation = make()
    marked(evaluation, monkeypatch, frames=30)
    evaluation.protocol = dataclasses.replace(evaluation.protocol, crops=True, swaps_persons=False)
    found = [evaluation._draw(replication, TRUTH, 0)["motion"][0, :, 0] for replication in range(150)]
    places = {(len(motion), int(motion[0] - 1) // 10) for motion in found}
    assert places == {*((28, start) for start in range(3)), *((24, start) for start in range(7))}
    assert np.mean([len(motion) == 24 for motion in found]) == pytest.approx(1 / 3, abs=0.12)
    marked(evaluation, monkeypatch, frames=5)
    assert {evaluation._draw(replication, TRUTH, 0)["motion"].shape[1] for replication in range(20)} == {4}


def test_what_is_compared_is_drawn_apart(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth, reference and what is generated from, in one replication and in different ones."""
    evaluation = make()
    asked = marked(evaluation, monkeypatch)
    epochs: dict[tuple[int, str], int] = {}
    for replication in range(3):
        for kind in (TRUTH, REFERENCE, GENERATED, MULTIMODAL):
            evaluation._draw(replication, kind, 0)
            epochs[replication, kind] = asked[-1][1]
    apart = {(replication, kind): epoch for (replication, kind), epoch in epochs.items() if kind != MULTIMODAL}
    assert len(set(apart.values())) == 9
    monkeypatch.undo()


def test_the_data_are_not_compared_with_themselves(make: Any) -> None:
    evaluation = make(mm_captions=0)
    rows = evaluate(evaluation, 1)[0]
    assert rows["ground truth"]["fid"] > 1e-3


def embeddings(evaluation: Evaluation, kind: str) -> dict[str, Any]:
    """Of every motion and its text the same vector, far from all others; multimodal ones 100 * text + sample."""
    if kind == MULTIMODAL:
        values = [[100.0 * text + sample] for text in range(2) for sample in range(3)]
        return {"motion_embedding": np.array(values)}
    shift = {TRUTH: 0.0, REFERENCE: 1.0, GENERATED: 3.0}[kind]
    rows = 10.0 * np.arange(7)[:, None] + shift
    return {"motion_embedding": rows, "text_embedding": rows}


def test_numbers_of_known_embeddings(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line, where every text is at its motion's place: what is paired, scaled and compared is told apart."""
    evaluation = make()
    evaluation.folder.mkdir()
    monkeypatch.setattr(Evaluation, "_gather", lambda self, replication, kind: embeddings(self, kind))
    found = evaluation.finish(0)
    for row in found.values():
        assert (row["r_precision_1"], row["mm_dist"]) == (1.0, pytest.approx(0.0, abs=1e-6))
        assert row["diversity"] >= 6 * 10 / 2
    # samples of one text are 1 or 2 apart, those of different texts 98 and more
    assert 1 <= found["model"]["multimodality"] <= 2
    assert found["model"]["multimodality_scaled"] == pytest.approx(3 * found["model"]["multimodality"])
    evaluation.protocol = dataclasses.replace(evaluation.protocol, scale=1.0, divide_by=1.0)
    plain = evaluation.finish(0)
    assert found["model"]["fid"] == pytest.approx(36 * plain["model"]["fid"])
    assert found["model"]["diversity"] == pytest.approx(3 * plain["model"]["diversity"])
    assert plain["model"]["multimodality"] == plain["model"]["multimodality_scaled"]


def test_fid_is_against_the_reference(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows kept: (3 - 1)^2 for the model, (0 - 1)^2 for the truth, times 36."""
    evaluation = make(items=7, batch_size=7)
    evaluation.folder.mkdir()
    monkeypatch.setattr(Evaluation, "_gather", lambda self, replication, kind: embeddings(self, kind))
    found = evaluation.finish(0)
    assert found["model"]["fid"] == pytest.approx(36 * 4)
    assert found["ground truth"]["fid"] == pytest.approx(36)


def test_texts_of_another_motion_are_not_their_own(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Evaluation, replication: int, kind: str) -> dict[str, Any]:
        found = embeddings(self, kind)
        return {**found, "text_embedding": np.roll(found["motion_embedding"], 1, axis=0)}

    evaluation = make(mm_captions=0)
    evaluation.folder.mkdir()
    monkeypatch.setattr(Evaluation, "_gather", shifted)
    assert evaluation.finish(0)["model"]["mm_dist"] >= 10


def test_processes_do_every_piece_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, done = make(), []
    monkeypatch.setattr(Evaluation, "do", lambda self, number, piece: done.append((number, piece.file)))
    monkeypatch.setattr(Evaluation, "finish", lambda self, number: {})
    for rank in range(3):
        evaluate(evaluation, 2, rank=rank, ranks=3)
    assert sorted(done) == sorted((number, piece.file) for number in range(2) for piece in evaluation.pieces(number))


def test_embeddings_come_in_the_order_of_their_motions(make: Any) -> None:
    """Pieces are sorted by length, numbers by item: texts of one row and motion of another would not be seen."""
    evaluation = make(mm_captions=0)
    evaluation.open_folder()
    rows: dict[int, Any] = {}
    for piece in evaluation.pieces(0):
        evaluation.do(0, piece)
        if piece.role == TRUTH:
            arrays = evaluation.make(0, piece, 1)
            rows |= {index: row for (index, _), row in zip(piece.draws, arrays["motion_embedding"], strict=True)}
    np.testing.assert_allclose(evaluation._gather(0, TRUTH)["motion_embedding"], [rows[i] for i in range(7)], atol=1e-5)


def test_pairs_of_an_evaluation_are_of_two_motions() -> None:
    rng = np.random.default_rng(0)
    first, second = runner._pairs(rng, 7, DIVERSITY_PAIRS)
    assert sorted(first) == sorted(second) == list(range(7))
    assert (first != second).all()
    first, second = runner._pairs(rng, 30, MULTIMODALITY_PAIRS)
    assert len(set(first)) == len(set(second)) == 10
    assert (DIVERSITY_PAIRS, MULTIMODALITY_PAIRS) == (300, 10)


def test_settings_reach_the_generation(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def generate(pipeline: Any, prompts: Any, lengths: Any, seeds: Any, **options: Any) -> list[torch.Tensor]:
        seen.append({"prompts": prompts, "lengths": lengths, "seeds": seeds, **options})
        return [torch.zeros(2, length, 262) for length in lengths]

    monkeypatch.setattr(type(make().pipeline), "sample", generate)
    evaluation = make(num_inference_steps=9, guidance_scale=2.5, scheduler="unipc", generation_batch=3)
    for piece in evaluation.pieces(0):
        if piece.generated:
            evaluation.do(0, piece)
    wanted = {"num_inference_steps": 9, "guidance_scale": 2.5, "scheduler": "unipc"}
    assert all({key: call[key] for key in wanted} == wanted for call in seen)
    assert max(len(call["prompts"]) for call in seen) == 3
    seeds = [seed for call in seen for seed in call["seeds"]]
    assert len(set(seeds)) == len(seeds) == 7 + 2 * 3, "no two motions share their noise"
    seen.clear()
    for piece in evaluation.pieces(1):
        if piece.generated:
            evaluation.make(1, piece, 1)
    assert not {seed for call in seen for seed in call["seeds"]} & set(seeds), "nor do two replications"
    seen.clear()
    other = make(seed=1)
    other.make(0, next(piece for piece in other.pieces(0) if piece.generated), 1)
    assert not set(seen[0]["seeds"]) & set(seeds)
    generated = next(piece for piece in evaluation.pieces(0) if piece.role == GENERATED)
    items = [evaluation._draw(0, GENERATED, index) for index, _ in generated.draws]
    evaluation.make(0, generated, 2)
    assert (seen[-1]["prompts"], seen[-1]["num_inference_steps"]) == ([item["caption"] for item in items], 2)
    assert seen[-1]["lengths"] == [item["motion"].shape[1] for item in items]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_texts_are_compared_within_batches_of_the_settings(make: Any, batch_size: int, monkeypatch: Any) -> None:
    seen: list[tuple[list[float], int]] = []
    retrieval = runner.retrieval
    monkeypatch.setattr(
        runner, "retrieval", lambda t, m, size: seen.append((t[:, 0].tolist(), size)) or retrieval(t, m, size)
    )
    monkeypatch.setattr(Evaluation, "_gather", lambda self, replication, kind: embeddings(self, kind))
    evaluation = make(batch_size=batch_size)
    evaluation.folder.mkdir()
    evaluation.finish(0)
    assert [(len(rows), size) for rows, size in seen] == [(6, batch_size)] * 2
    assert all(sorted(rows) != rows for rows, _ in seen), "which share a batch is drawn"


def test_multimodality_is_of_as_many_texts_and_samples_as_set(make: Any) -> None:
    draws = [
        draw
        for piece in make(mm_captions=3, mm_samples=4).pieces(0)
        if piece.role == MULTIMODAL
        for draw in piece.draws
    ]
    assert len({index for index, _ in draws}) == 3
    assert len(draws) == 12
    chosen = [frozenset(i for p in make().pieces(n) if p.role == MULTIMODAL for i, _ in p.draws) for n in range(6)]
    assert len(set(chosen)) > 2, "drawn anew in every replication"


CHANGED: dict[str, Any] = {
    "data": "other", "split": "val", "items": 8, "model": "x", "evaluator": "x", "batch_size": 2, "seed": 1,
    "mm_captions": 1, "mm_samples": 2, "num_inference_steps": 2, "guidance_scale": 2.0, "scheduler": "unipc",
    "generation_batch": 5,
}  # fmt: skip


def test_every_setting_belongs_to_the_folder(make: Any) -> None:
    assert CHANGED.keys() == {field.name for field in dataclasses.fields(EvaluationSettings)}
    make().open_folder()
    for name, value in CHANGED.items():
        with pytest.raises(ValueError, match=f"got others: {name} was .* is {value!r}"):
            make(**{name: value}).open_folder()


def test_every_motion_is_embedded_with_its_own_length(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, seen = make(), []
    embed = evaluation.evaluator.embed_motion
    monkeypatch.setattr(
        evaluation.evaluator, "embed_motion", lambda motion, lengths: (seen.append(lengths), embed(motion, lengths))[1]
    )
    for kind in (TRUTH, GENERATED):
        piece = next(piece for piece in evaluation.pieces(0) if piece.role == kind)
        evaluation.make(0, piece, 1)
        assert seen.pop().tolist() == [evaluation.dataset.num_frames(index) for index, _ in piece.draws]


def test_texts_look_for_their_motion_and_not_the_other_way_round(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text 1 is nearer to motion 0 than to its own, motion 1 has no nearer text than its own."""
    evaluation = make(batch_size=7, mm_captions=0)
    motion = np.stack([10.0 * np.arange(7), np.zeros(7)], axis=1)
    text = motion.copy()
    text[1, 0] = 4.0
    monkeypatch.setattr(evaluation, "_gather", lambda *_: {"motion_embedding": motion, "text_embedding": text})
    evaluation.open_folder()
    assert evaluation.finish(0)["model"]["r_precision_1"] == pytest.approx(6 / 7)


def test_what_a_killed_process_left_is_removed(make: Any) -> None:
    evaluation = make()
    left = evaluation.folder / "pieces" / "00" / ".truth-0000.1a2b3c4d.npz"
    left.parent.mkdir(parents=True)
    left.touch()
    evaluation.open_folder()
    assert not left.exists()
