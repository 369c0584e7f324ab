"""What an evaluation checks, draws, pairs and in which order it works, by small cases known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, MotionDataset
from intermoe.eval import runner
from intermoe.eval.protocol import PROTOCOLS
from intermoe.eval.runner import (
    GENERATED,
    MULTIMODAL,
    REFERENCE,
    TRUTH,
    Evaluation,
    EvaluationSettings,
    _pairs,
    digest,
    evaluate,
)

Make = Callable[..., Evaluation]
SHORTEST_FIRST = (4, 2, 0, 6, 3, 1, 5)  # items of 16, 17, 18, 19, 22, 31 and 40 frames


@pytest.fixture(scope="module")
def dataset(bowing: Path) -> MotionDataset:
    return MotionDataset(DATA_SETS["interhuman"], bowing, "test", min_frames=8, max_frames=40, training=True)


@pytest.fixture
def make(dataset: MotionDataset, tmp_path: Path) -> Make:
    """An evaluation of a model and by an evaluator that make and judge nothing."""

    def build(*, reads: bool = False, texts: Any = None, pipeline: Any = None, **changes: Any) -> Evaluation:
        values: dict[str, Any] = {
            "data": "interhuman", "split": "test", "items": 7, "model": "m", "evaluator": "e", "batch_size": 3,
            "mm_captions": 2, "mm_samples": 3, "generation_batch": 4,
        }  # fmt: skip
        pipeline = pipeline or SimpleNamespace(representation=SimpleNamespace(name="interhuman"))
        evaluator: Any = SimpleNamespace(representation="interhuman", reads_tokens=reads)
        settings = EvaluationSettings(**{**values, **changes})
        protocol = PROTOCOLS["interhuman"]
        return Evaluation(pipeline, evaluator, dataset, protocol, settings, tmp_path / "out", texts=texts)

    return build


def test_a_model_and_words_must_fit(make: Make) -> None:
    other: Any = SimpleNamespace(representation=SimpleNamespace(name="interx"))
    with pytest.raises(ValueError, match=r"^model: expected one for interhuman, the data, got one for interx$"):
        make(pipeline=other)
    with pytest.raises(ValueError, match=r"^texts: expected words with their part of speech, .*, got none$"):
        make(reads=True)
    words = make(reads=True, texts={"they bow": "they/PRON bow/VERB"})
    assert words._words("they bow") == "they/PRON bow/VERB"
    with pytest.raises(ValueError, match=r"^texts: expected words .* for every caption, got none for 'they nod'$"):
        words._words("they nod")
    assert make(texts={"they bow": "they/PRON bow/VERB"})._words("they bow") == "they bow"  # of one that reads captions


def test_numbers_belong_to_words_and_to_all_of_a_protocol_but_what_was_published(make: Make) -> None:
    one, other = make().identity(), make(texts={"they bow": "x"}).identity()
    assert {key for key in one if one[key] != other[key]} == {"words"}
    assert other["words"] != make(texts={"they bow": "y"}).identity()["words"]
    assert one["protocol"] == {
        "data": "interhuman", "batch_size": 96, "scale": 6.0, "divide_by": 2.0, "swaps_persons": True, "crops": False,
    }  # fmt: skip
    assert set(one) == {*make().settings.to_dict(), "content", "protocol", "words"}


@pytest.mark.parametrize("swaps", [True, False])
def test_captions_are_checked_as_they_may_be_drawn(make: Make, dataset: MotionDataset, swaps: bool) -> None:
    asked: list[Any] = []
    read: list[Any] = []
    pipeline: Any = SimpleNamespace(
        representation=SimpleNamespace(name="interhuman"), check=lambda *given: asked.append(given)
    )
    captions = [
        "Two people bow.", "The first dancer turns to the left.", "One of them turns.",
        *(("Two people bow.", "The second dancer turns to the left.", "One of them turns.") if swaps else ()),
    ]  # fmt: skip
    evaluation = make(pipeline=pipeline, reads=True, texts={caption: caption.upper() for caption in captions})
    evaluation.protocol = dataclasses.replace(evaluation.protocol, swaps_persons=swaps)
    evaluation.evaluator.check_text = read.append  # type: ignore[method-assign]
    evaluation.check()
    assert asked == [(captions, frames) for frames in (18, 31, 17, 22, 16, 40, 19)]
    assert read == [[caption.upper() for caption in captions]] * 7

    def refuse(texts: Any) -> None:
        raise ValueError("text: refused")

    evaluation.evaluator.check_text = refuse  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=rf"^{dataset.root}: split 'test', item '1': text: refused$"):
        evaluation.check()


def test_pieces_are_of_motions_of_similar_length(make: Make) -> None:
    evaluation = make()
    found = {piece.file: piece.draws for piece in evaluation.pieces(0) if piece.role != MULTIMODAL}
    assert found == {
        f"{role}-000{number}.npz": tuple((index, 0) for index in part)
        for role in (TRUTH, REFERENCE, GENERATED)
        for number, part in enumerate((SHORTEST_FIRST[:4], SHORTEST_FIRST[4:]))
    }
    drawn = [draw for piece in evaluation.pieces(0) if piece.role == MULTIMODAL for draw in piece.draws]
    chosen = sorted({index for index, _ in drawn}, key=SHORTEST_FIRST.index)
    assert drawn == [(index, number) for index in chosen for number in (1, 2, 3)]


def test_items_of_one_length_stay_in_order(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = make(mm_captions=7, mm_samples=2, generation_batch=64)
    monkeypatch.setattr(evaluation.dataset, "num_frames", lambda index: 40)
    draws = {piece.role: piece.draws for piece in evaluation.pieces(0)}
    assert draws[TRUTH] == tuple((index, 0) for index in range(7))
    assert draws[MULTIMODAL] == tuple((index, number) for index in range(7) for number in (1, 2))


def test_noise_is_of_a_replication_an_item_and_a_sample(make: Make) -> None:
    evaluation = make()
    keys = [(replication, index, sample) for replication in range(3) for index in range(7) for sample in range(4)]
    seeds = [evaluation._noise_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    assert max(seeds) > 2**62  # of all 63 bits


def test_every_item_is_exchanged_and_cut_by_a_chance_of_its_own(
    make: Make, dataset: MotionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []

    def draw(index: int, epoch: int) -> Any:
        epochs.append(epoch)
        motion = torch.stack([torch.full((30, 262), float(person)) for person in (1, 2)])
        return {"name": str(index), "motion": motion, "caption": "the first dancer bows"}

    monkeypatch.setattr(dataset, "draw", draw)
    evaluation = make()
    flips = np.array(
        [
            [evaluation._draw(replication, TRUTH, i)["motion"][0, 0, 0] == 2 for i in range(7)]
            for replication in range(8)
        ]
    )
    assert len({row.tobytes() for row in flips}) > 5  # other items in every replication
    assert 0 < flips.sum(axis=1).min() <= flips.sum(axis=1).max() < 7
    epochs.clear()
    for replication in (0, 5):
        for role in (TRUTH, REFERENCE, GENERATED, MULTIMODAL):
            evaluation._draw(replication, role, 3)
    assert epochs == [0, 1, 2, 2, 15, 16, 17, 17]  # motions of one text are of the text that is generated from


def known(evaluation: Evaluation, role: str) -> dict[str, Any]:
    """Seven motions, and texts whose places tell item and role."""
    count = 6 if role == MULTIMODAL else 7
    rows = np.array([[1000.0 * (TRUTH, REFERENCE, GENERATED, MULTIMODAL).index(role) + i, 0] for i in range(count)])
    return {"motion_embedding": rows, "text_embedding": np.add(rows, (0.0, 0.5))}


def test_every_role_and_replication_leaves_out_motions_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven motions in batches of three six are kept: of what is measured and of what it is compared with."""
    monkeypatch.setattr(Evaluation, "_gather", lambda self, replication, role: known(self, role))
    compared: list[Any] = []
    scales: list[Any] = []
    diverse: list[Any] = []

    def frechet(motion: Any, reference: Any, *, scale: float) -> float:
        compared.append((motion[:, 0].astype(int).tolist(), reference[:, 0].astype(int).tolist()))
        scales.append(scale)
        return 0.0

    def diversity(motion: Any, first: Any, second: Any, **scaling: float) -> float:
        diverse.append((len(motion), sorted(first.tolist()), sorted(second.tolist()), scaling))
        return 0.0

    monkeypatch.setattr(runner, "frechet_distance", frechet)
    monkeypatch.setattr(runner, "diversity", diversity)
    evaluation = make(mm_captions=0)
    evaluation.folder.mkdir()
    for replication in range(6):
        found = evaluation.finish(replication)
        assert list(found) == ["ground truth", "model"]
        assert all(row["mm_dist"] == 0.5 for row in found.values())
        assert all(row["multimodality"] is row["multimodality_scaled"] is None for row in found.values())
    assert set(scales) == {6.0}
    assert diverse == [(6, list(range(6)), list(range(6)), {"scale": 6.0, "divide_by": 2.0})] * 12
    orders = []
    for truth, generated in zip(compared[::2], compared[1::2], strict=True):
        assert truth[1] == generated[1]  # with one reference
        orders += [(TRUTH, truth[0]), (REFERENCE, truth[1]), (GENERATED, generated[0])]
    for role, order in orders:
        start = 1000 * (TRUTH, REFERENCE, GENERATED).index(role)
        assert len(set(order)) == 6
        assert set(order) < set(range(start, start + 7))
    assert len({tuple(place % 1000 for place in order) for _, order in orders}) == 18
    first = list(compared[:2])
    evaluation.finish(0)
    assert compared[-2:] == first


def test_pairs_of_samples_are_of_one_text(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 motions of each of two texts ten pairs; texts are the rows, samples follow each other."""
    rows = np.stack([np.arange(60.0), np.zeros(60)], axis=1)
    seen: list[Any] = []

    def multimodality(embedded: Any, first: Any, second: Any, **scaling: float) -> float:
        seen.append((embedded[..., 0].tolist(), len(set(first)), len(set(second)), scaling))
        return 4.0 if scaling else 3.0

    def gather(self: Evaluation, replication: int, role: str) -> Any:
        return {"motion_embedding": rows} if role == MULTIMODAL else known(self, role)

    monkeypatch.setattr(Evaluation, "_gather", gather)
    monkeypatch.setattr(runner, "multimodality", multimodality)
    evaluation = make(mm_samples=30)
    evaluation.folder.mkdir()
    found = evaluation.finish(0)
    texts = [list(map(float, range(30))), list(map(float, range(30, 60)))]
    assert seen == [(texts, 10, 10, {}), (texts, 10, 10, {"scale": 6.0, "divide_by": 2.0})]
    assert (found["model"]["multimodality"], found["model"]["multimodality_scaled"]) == (3.0, 4.0)
    assert found["ground truth"]["multimodality"] is None


@pytest.mark.parametrize(("count", "pairs"), [(7, 7), (10, 10), (11, 10), (300, 10)])
def test_as_many_pairs_as_wanted_and_none_of_one_motion_where_they_are_few(count: int, pairs: int) -> None:
    for seed in range(5):
        first, second = _pairs(np.random.default_rng(seed), count, 10)
        for side in (first, second):
            assert len(side) == len(set(side.tolist())) == pairs
            assert set(side.tolist()) <= set(range(count))
        if count <= 10:
            assert (first != second).all()


class Work:
    """An evaluation of two replications, of three pieces and of two, that notes what is done and when."""

    def __init__(self, folder: Path, finished: tuple[int, ...] = ()) -> None:
        self.folder, self.events = folder, []
        self.rows = {number: {"model": {"fid": float(number)}} for number in finished}

    def check(self) -> None:
        self.events.append("check")

    def open_folder(self) -> None:
        assert (self.folder / ".lock").exists()
        self.events.append("open")

    def missing(self, number: int) -> list[str]:
        self.events.append(f"missing {number}")
        return [] if number in self.rows else [f"{number}{letter}" for letter in ("abc", "de")[number]]

    def do(self, number: int, piece: str) -> None:
        assert piece.startswith(str(number))
        self.events.append(piece)

    def numbers(self, number: int) -> Any:
        return self.rows.get(number)

    def finish(self, number: int) -> None:
        self.events.append(f"finish {number}")
        self.rows[number] = {"model": {"fid": float(number)}}


@pytest.mark.parametrize(
    ("rank", "ranks", "finished", "events"),
    [
        (
            0, 1, (),
            "check, open, wait, missing 0, missing 1, wait, 0a, 0b, 0c, wait, finish 0, 1d, 1e, wait, finish 1, wait",
        ),
        (0, 2, (), "check, open, wait, missing 0, missing 1, wait, 0a, 0c, wait, finish 0, 1d, wait, finish 1, wait"),
        (1, 2, (), "check, wait, missing 0, missing 1, wait, 0b, wait, 1e, wait, wait"),
        (0, 1, (0,), "check, open, wait, missing 0, missing 1, wait, wait, 1d, 1e, wait, finish 1, wait"),
    ],
)  # fmt: skip
def test_processes_wait_for_each_other_before_numbers(
    rank: int, ranks: int, finished: tuple[int, ...], events: str, tmp_path: Path
) -> None:
    """Nobody looks for pieces before the folder is open, or works while another still looks; numbers come last."""
    work: Any = Work(tmp_path / "out", finished)
    done: list[Any] = []
    found = evaluate(
        work, 2, rank=rank, ranks=ranks, wait=lambda: work.events.append("wait"), progress=lambda *n: done.append(n)
    )
    assert ", ".join(work.events) == events
    assert found == ([] if rank else [{"model": {"fid": float(number)}} for number in range(2)])
    total = sum(event[0].isdigit() for event in work.events)
    assert done == [(number, total) for number in range(1, total + 1)]


def test_a_digest_tells_files_of_the_same_bytes_apart(tmp_path: Path) -> None:
    """What one file ends with and the next begins with, and which of them there are."""
    found = []
    for number, parts in enumerate(
        (
            {"config.json": b"ab", "tokenizer.json": b"c"},
            {"config.json": b"a", "tokenizer.json": b"bc"},
            {"config.json": b"abc"},
            {"config.json": b"a", "tokenizer.json": b"b"},
            {"config.json": b"atokenizer.jsonb"},
            {"config.json": b"atokenizer.json\0b"},
            {"tokenizer.json": b"abc"},
            {"model.safetensors": b"abc"},
            {},
        )
    ):
        (tmp_path / str(number)).mkdir()
        for name, content in parts.items():
            (tmp_path / str(number) / name).write_bytes(content)
        found.append(digest(tmp_path / str(number)))
    assert len(set(found)) == len(found)
    assert {len(each) for each in found} == {16}
    assert set("".join(found)) <= set("0123456789abcdef")
    (tmp_path / "0" / "training.json").write_bytes(b"beside it")
    assert digest(tmp_path / "0") == found[0]
