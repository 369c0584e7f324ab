"""Training of an evaluator: it learns to match, resumes, and is what evaluation takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.data import DATA_SETS, MotionDataset, collate
from intermoe.evaluators.evaluator import load_evaluator
from intermoe.evaluators.interclip import InterClip
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import evaluator as module
from intermoe.train.condition import train_word_pieces
from intermoe.train.draws import ItemDraws
from intermoe.train.evaluator import EvaluatorObjective, EvaluatorTrainConfig, run_evaluator

CONFIG: dict[str, Any] = {
    "data": {"batch_size": 3},
    "model": {
        "width": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16, "embedding_dim": 8, "scale": 3.0,
        "text": {
            "kind": "wordpiece", "output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16,
            "vocab_size": 60,
        },
    },
    "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.9},
    "run": {"log_every": 2, "validate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3},
}  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    return path


def test_a_run_resumes_and_is_an_evaluator(pairs: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "config.json")
    whole = load_evaluator(run_evaluator(config, tmp_path / "whole", data=pairs))
    run_evaluator(config, tmp_path / "parts", data=pairs)
    for path in (tmp_path / "parts" / "checkpoints").glob("step-00000004/*"):
        path.unlink()
    (tmp_path / "parts" / "checkpoints" / "step-00000004").rmdir()
    resumed = load_evaluator(run_evaluator(config, tmp_path / "parts", data=pairs, resume=True))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    motion = torch.randn(2, 2, 20, 262)
    embedded = whole.embed_motion(motion, torch.tensor([20, 7]))
    torch.testing.assert_close(whole.embed_motion(motion[1:, :, :7], torch.tensor([7])), embedded[1:])
    assert whole.embed_text(["two people dance"]).shape == (1, 8)
    assert (tmp_path / "whole" / "model" / "training.json").exists()


def test_it_learns_to_match(pairs: Path, tmp_path: Path) -> None:
    """Five fixed clips with a description of their own each: after some steps every one finds its own."""
    torch.manual_seed(0)
    whole = load_evaluator(run_evaluator(write(tmp_path / "config.json"), tmp_path / "run", data=pairs))
    objective = EvaluatorObjective(whole.requires_grad_(True))  # type: ignore[arg-type]
    dataset = MotionDataset(DATA_SETS["interhuman"], pairs, "train", min_frames=16, training=False)
    captions = ["the first dancer", "the second dancer", "two people", "turns to the left", "to the right"]
    batch = {**collate([dataset[index] for index in range(5)]), "captions": captions}
    draws = ItemDraws((0, 0), range(5), torch.device("cpu"))
    optimizer = torch.optim.AdamW(objective.parameters(), 5e-3)
    first = objective(batch, draws)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(batch, draws)["loss"]
        loss.backward()
        optimizer.step()
    values = objective.eval()(batch, draws, validating=True)
    assert values["loss"].item() < 0.5 * first
    assert values["r_precision_1"].item() == 1.0


def test_equal_descriptions_and_clips_are_not_told_apart(pairs: Path, tmp_path: Path) -> None:
    whole = load_evaluator(run_evaluator(write(tmp_path / "config.json"), tmp_path / "run", data=pairs))
    objective = EvaluatorObjective(whole)  # type: ignore[arg-type]
    batch = {
        "names": ["a", "b", "c"],
        "captions": ["two people dance", "two people dance", "turns"],
        "motion": torch.randn(3, 2, 12, 262),
        "lengths": torch.tensor([12, 9, 5]),
    }
    draws = ItemDraws((0, 0), range(3), torch.device("cpu"))
    motion = whole.embed_motion(batch["motion"], batch["lengths"])
    logits = whole.embed_text(batch["captions"]) @ motion.T
    logits[0, 1] = logits[1, 0] = -torch.inf
    rows = [torch.logsumexp(side, dim=1) - side.diagonal() for side in (logits, logits.T)]
    torch.testing.assert_close(objective(batch, draws)["loss"], torch.cat(rows).mean())
    other = {**batch, "captions": ["a", "b", "c"], "names": ["a", "b", "a"]}
    assert torch.isfinite(objective(other, draws)["loss"])


@pytest.mark.parametrize(
    ("names", "captions", "apart"),
    [
        (("a", "b", "c"), ("x", "y", "z"), [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),
        (("a", "a", "c"), ("x", "y", "z"), [(0, 2), (1, 2), (2, 0), (2, 1)]),  # another cut of the same clip
        (("a", "b", "c"), ("x", "y", "x"), [(0, 1), (1, 0), (1, 2), (2, 1)]),  # the same words
    ],
)
def test_the_loss_by_hand(names: tuple[str, ...], captions: tuple[str, ...], apart: list[tuple[int, int]]) -> None:
    """The mean of both directions, of -log of the share that the own one has of e^(t . m), among those told apart."""
    generator = torch.Generator().manual_seed(0)
    text, motion = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)

    class Stub(torch.nn.Module):
        def embed_text(self, captions: list[str]) -> torch.Tensor:
            return text

        def embed_motion(self, motions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return motion

    batch = {"names": list(names), "captions": list(captions), "motion": motion, "lengths": torch.ones(3)}
    objective = EvaluatorObjective(Stub())  # type: ignore[arg-type]
    values = objective(batch, ItemDraws((0,), range(3), torch.device("cpu")), validating=True)
    scores = (text @ motion.T).exp()
    terms = []
    for own in range(3):
        for others in ([scores[own, b] for a, b in apart if a == own], [scores[b, own] for a, b in apart if a == own]):
            terms.append(-(scores[own, own] / (scores[own, own] + sum(others))).log())
    torch.testing.assert_close(values["loss"], torch.stack(terms).mean())
    nearest = [all(scores[own, own] > scores[own, b] for a, b in apart if a == own) for own in range(3)]
    assert values["r_precision_1"].item() == pytest.approx(sum(nearest) / 3)
    motion[:] = motion[0]  # all alike: nobody is found, unless there is nobody else
    values = objective(batch, ItemDraws((0,), range(3), torch.device("cpu")), validating=True)
    assert values["r_precision_1"].item() == 0


def test_bad_configurations_are_named() -> None:
    values: dict[str, Any] = {"model": CONFIG["model"]}
    with pytest.raises(ValueError, match=r"data\.batch_size: expected >= 2"):
        EvaluatorTrainConfig.from_dict({**values, "data": {"batch_size": 1}})
    with pytest.raises(ValueError, match=r"model\.representation: expected data\.representation='interhuman'"):
        EvaluatorTrainConfig.from_dict({"model": {**CONFIG["model"], "layout": "interx"}})
    with pytest.raises(ValueError, match=r"model\.text\.kind: expected wordpiece or huggingface"):
        EvaluatorTrainConfig.from_dict({})


@pytest.mark.parametrize("name", ["salsa_evaluator", "interhuman_evaluator"])
def test_shipped_configurations_are_valid(name: str) -> None:
    path = Path(__file__).resolve().parents[2] / "intermoe" / "train" / "configs" / f"{name}.yaml"
    config = EvaluatorTrainConfig.load(path)
    if name == "interhuman_evaluator":
        assert (config.model.width, config.model.num_layers, config.model.embedding_dim) == (1024, 8, 512)


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_run_trains_on_and_what_it_keeps(
    resume: bool, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits in their order, weights of the run's seed, word pieces of its captions or of the run that goes on."""
    seen: list[Any] = []

    def fit(accelerator: Any, objective: Any, config: Any, train: Any, validation: Any, *_: Any, resume: bool) -> Any:
        seen.extend((objective, train, validation, resume))
        return {name: value + 1 for name, value in objective.state_dict().items()}

    monkeypatch.setattr(module, "fit", fit)
    path, output = write(tmp_path / "config.json", seed=6), tmp_path / "run"
    output.mkdir()
    kept = WordPieceTextEncoder.train_tokenizer(["somebody kneels"], 40)
    (output / "tokenizer.json").write_text(kept, encoding="utf-8")
    folder = run_evaluator(path, output, data=pairs, resume=resume)
    objective, train, validation, resumed = seen
    assert resumed is resume
    assert (train.split, len(train), validation.split, len(validation)) == ("train", 5, "val", 2)
    config = EvaluatorTrainConfig.load(path)
    tokenizer = kept if resume else train_word_pieces(config, config.model.text, train)
    assert (output / "tokenizer.json").read_text(encoding="utf-8") == tokenizer
    torch.manual_seed(6)
    expected = InterClip(config.model, tokenizer).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in objective.evaluator.state_dict().items())
    saved = load_evaluator(folder).state_dict()
    assert all(torch.equal(saved[name], value + 1) for name, value in expected.items())
