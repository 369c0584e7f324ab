"""Training of an evaluator on one's own data: the contrastive objective of InterCLIP."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from intermoe.config import _require
from intermoe.evaluators.evaluator import TOKENIZER_FILE, save_evaluator
from intermoe.evaluators.interclip import InterClip, InterClipConfig
from intermoe.files import replacing_folder, write_text
from intermoe.train import run
from intermoe.train.condition import train_word_pieces
from intermoe.train.config import TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit


@dataclass(frozen=True)
class EvaluatorTrainConfig(TrainConfig):
    """Training of an evaluator. Within a process's batch every description must find its motion, so size matters."""

    trainer: str = "evaluator"
    model: InterClipConfig = field(default_factory=InterClipConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.data.batch_size >= 2,
            "data.batch_size",
            ">= 2 (the others are what to tell apart)",
            self.data.batch_size,
        )
        data, model = self.data.representation, self.model.representation
        _require(model == data, "model.representation", f"data.representation={data!r}", model)
        kind = self.model.text.kind
        own = kind in ("wordpiece", "huggingface")
        _require(own, "model.text.kind", "wordpiece or huggingface (others' weights do not come along)", kind)


class EvaluatorObjective(Objective):
    """The evaluator and its contrastive loss on batches of ``intermoe.data.collate``."""

    def __init__(self, evaluator: InterClip) -> None:
        super().__init__()
        self.evaluator = evaluator

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """The loss; in validation also the share of texts whose own motion is the nearest of the batch."""
        motion = self.evaluator.embed_motion(batch["motion"], batch["lengths"])
        logits = self.evaluator.embed_text(batch["captions"]) @ motion.T
        # another cut of the same clip, or the same words, is no motion to tell apart
        same = (_equal(batch["names"]) | _equal(batch["captions"])) & ~torch.eye(len(logits), dtype=torch.bool)
        logits = logits.masked_fill(same.to(logits.device), -torch.inf)
        pairs = torch.arange(len(logits), device=logits.device)
        both = torch.nn.functional.cross_entropy(logits, pairs) + torch.nn.functional.cross_entropy(logits.T, pairs)
        values = {"loss": both / 2}
        if validating:
            own = logits.diagonal()[:, None]
            values["r_precision_1"] = ((logits >= own).sum(dim=1) == 1).float().mean()  # a tie is no hit
        return values


def _equal(texts: Sequence[str]) -> Tensor:
    """Which of ``texts`` are the same: (B, B) bool."""
    numbers = {text: number for number, text in enumerate(texts)}
    row = torch.tensor([numbers[text] for text in texts])
    return row[:, None] == row


def run_evaluator(
    config_path: str | Path, output_dir: str | Path, resume: bool = False, data: str | Path | None = None
) -> Path:
    """Train an evaluator as the file says; returns ``output_dir/model``, a folder for ``load_evaluator``.

    Args:
        config_path: YAML or JSON of ``EvaluatorTrainConfig``.
        output_dir: gets ``config.json``, ``tokenizer.json``, ``checkpoints/``, ``logs/`` and, at the end, ``model/``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration or unusable data, named. FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(EvaluatorTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    train = run.open_split(config, "train", min_frames=config.data.min_frames)
    validation = run.open_split(config, "val", min_frames=config.data.min_frames)
    tokenizer, path = None, output_dir / TOKENIZER_FILE
    if config.model.text.kind == "wordpiece":
        known = resume and path.exists()
        tokenizer = path.read_text(encoding="utf-8") if known else train_word_pieces(config, config.model.text, train)
    torch.manual_seed(config.seed)
    objective = EvaluatorObjective(InterClip(config.model, tokenizer))
    run.check_captions(objective.evaluator.text, train, validation)
    folder, splits = output_dir / "model", {"train": train, "val": validation}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        if tokenizer is not None:
            run.once(accelerator, path, functools.partial(write_text, content=tokenizer), resume=resume)
        state = fit(accelerator, objective, config, train, validation, output_dir, resume=resume)
        if state is not None:
            evaluator = InterClip(config.model, tokenizer)
            evaluator.load_state_dict({key.removeprefix("evaluator."): value for key, value in state.items()})
            with replacing_folder(folder) as temporary:
                save_evaluator(temporary, evaluator)
                run.write_config(temporary / "training.json", run.without_paths(config))
    return folder


TRAINER = run.Training(EvaluatorTrainConfig, run_evaluator)
