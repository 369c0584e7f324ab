"""Training of InterMask: its tokeniser, then the transformer that unmasks the frozen tokeniser's codes."""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.config import _require
from intermoe.data.dataset import MotionChoice, MotionDataset
from intermoe.data.sets import DATA_SETS, train_statistics
from intermoe.files import replacing_folder
from intermoe.motion.interhuman import joints
from intermoe.motion.statistics import Statistics
from intermoe.systems.files import write_model
from intermoe.systems.intermask.config import (
    MIN_STEPS,
    InterMaskConfig,
    InterMaskModelConfig,
    TokenizerConfig,
    TokenizerLossConfig,
)
from intermoe.systems.intermask.losses import MaskDraws, commitment, mask_codes, tokenizer_losses, unmasking_losses
from intermoe.systems.intermask.network import PERSONS, InterMask
from intermoe.systems.intermask.tokenizer import DOWNSAMPLING, NUM_PARTS, MotionTokenizer
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.train import run
from intermoe.train.condition import keep_tokenizer, prepare_text
from intermoe.train.config import TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.folders import load_trained, save_trained
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit
from intermoe.train.vae import Windows


@dataclass(frozen=True)
class TokenizerTrainConfig(TrainConfig):
    """Training of the tokeniser on windows of ``window`` frames of each person; see ``VAETrainConfig`` for them."""

    trainer: str = "tokenizer"
    window: int = 64
    window_stride: int | None = None
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.window % DOWNSAMPLING == 0 and DOWNSAMPLING <= self.window <= self.data.max_frames
        _require(ok, "window", f"a multiple of {DOWNSAMPLING} frames in [4, data.max_frames]", self.window)
        ok = self.window_stride is None or self.window_stride >= 1
        _require(ok, "window_stride", ">= 1", self.window_stride)
        _require_interhuman(self.data.representation, "data.representation")
        _require_interhuman(self.model.representation, "model.representation")


@dataclass(frozen=True)
class InterMaskTrainConfig(TrainConfig):
    """Training of masked transformer and text encoder. ``name`` goes into the saved pipeline.

    ``person_share`` is how often all of one person is hidden, ``condition_dropout`` how often there is no text.
    """

    MIN_STEPS: ClassVar[int] = MIN_STEPS
    trainer: str = "intermask"
    name: str = "intermask"
    person_share: float = 0.2
    condition_dropout: float = 0.1
    model: InterMaskConfig = field(default_factory=InterMaskConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("person_share", "condition_dropout"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, "a value in [0, 1]", getattr(self, name))
        _require_interhuman(self.data.representation, "data.representation")
        _require(self.data.num_workers == 0, "data.num_workers", "0 (codes are kept)", self.data.num_workers)
        expected = f"model.text_dim={self.model.text_dim}"
        _require(self.text.output_dim == self.model.text_dim, "text.output_dim", expected, self.text.output_dim)


def _require_interhuman(representation: str, name: str) -> None:
    """Inter-X and HumanML3D have no positions that the tokeniser could learn without a body model."""
    _require(representation == "interhuman", name, "interhuman", representation)


class TokenizerObjective(Objective):
    """The tokeniser and its losses on windows of motion. Its codebook moves with each training batch."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: TokenizerTrainConfig, statistics: Statistics) -> None:
        super().__init__()
        self.tokenizer = MotionTokenizer(config.model)
        self.weights = config.losses
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std), persistent=False)

    def repeated_parts(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.tokenizer.encoder, self.tokenizer.decoder]

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: terms of ``tokenizer_losses`` and ``commitment``. Validation: ``joint_error_cm`` of whole groups.

        In validation a motion's padding is zero after normalising, as the masked transformer's training encodes it.
        """
        persons = batch["motion"].shape[1]
        frames = batch["motion"].shape[2] // DOWNSAMPLING * DOWNSAMPLING
        motion = ((batch["motion"][:, :, :frames] - self.mean) / self.std).flatten(0, 1)
        if validating:
            lengths = batch["lengths"].repeat_interleave(persons)[:, None]
            places = torch.arange(frames, device=motion.device)
            output = self.tokenizer(motion.masked_fill(~(places < lengths)[..., None], 0.0)).motion
            distance = torch.linalg.vector_norm(joints((output - motion) * self.std), dim=-1).mean(dim=-1)
            valid = places < lengths // DOWNSAMPLING * DOWNSAMPLING
            return {"joint_error_cm": 100 * (distance.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1)).mean()}
        codebook = self.tokenizer.codebook
        if not codebook.initialised:
            codebook.initialise(_points(self.tokenizer.features(motion)))
        numbers = draws.uniform(persons, NUM_PARTS, frames // DOWNSAMPLING, len(codebook.vectors))
        output = self.tokenizer(motion, numbers.flatten(0, 1))
        terms = tokenizer_losses(output.motion, motion, self.mean, self.std, self.weights)
        vectors = rearrange(codebook.lookup(output.codes), "n part t c -> n c part t")
        terms["commitment"] = commitment(output.features, vectors)
        terms["loss"] = terms["loss"] + self.weights.commitment * terms["commitment"]
        codebook.update(_points(output.features), output.codes.flatten())
        return terms


def _points(features: Tensor) -> Tensor:
    """(N, C, 5, T / 4) -> (N * 5 * T / 4, C), in the order of the flattened codes."""
    return rearrange(features.detach(), "n c part t -> (n part t) c")


def run_tokenizer(
    config_path: str | Path, output_dir: str | Path, resume: bool = False, data: str | Path | None = None
) -> Path:
    """Train a tokeniser as the file says; returns ``output_dir/model``, which ``load_tokenizer_folder`` reads.

    Args:
        config_path: YAML or JSON of ``TokenizerTrainConfig``.
        output_dir: gets ``config.json``, ``statistics.json``, ``checkpoints/``, ``logs/`` and, at the end, ``model/``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration or unusable data, named. FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(TokenizerTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    train = run.open_split(config, "train", min_frames=max(config.window, config.data.min_frames))
    validation = run.open_split(config, "val", min_frames=config.data.min_frames)
    folder, splits = output_dir / "model", {"train": train, "val": validation}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        path, write = output_dir / "statistics.json", functools.partial(_write_statistics, train)
        statistics = Statistics.load(run.once(accelerator, path, write, resume=resume))
        torch.manual_seed(config.seed)
        objective = TokenizerObjective(config, statistics)
        windows = Windows(train, config.window, config.window_stride)
        state = fit(accelerator, objective, config, windows, validation, output_dir, resume=resume)
        if state is not None:
            save_trained(folder, "tokenizer", config, state, statistics)
    return folder


def _write_statistics(train: MotionDataset, path: Path) -> None:
    train_statistics(train).save(path)


def load_tokenizer_folder(folder: str | Path) -> tuple[MotionTokenizer, Statistics]:
    """The tokeniser that ``run_tokenizer`` saved, in eval mode and frozen, and the statistics of its motion.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file does not fit the configuration; names the key.
    """
    return load_trained(folder, "tokenizer", TokenizerConfig, MotionTokenizer)


class CodeItem(TypedDict):
    """One item: ``codes`` is int64 (P, 5, L)."""

    name: str
    codes: Tensor
    caption: str


class CodeDataset:
    """``dataset`` as the codes of a frozen tokeniser, item by item, on ``device``; of equal choices only the first is
    converted and encoded.

    As in the published training a motion is followed by zeros, normalised, up to ``max_frames``, whose codes are cut
    off: codes next to the end have seen padding, and do not depend on a batch.
    """

    def __init__(
        self, dataset: MotionDataset, tokenizer: MotionTokenizer, statistics: Statistics, device: torch.device
    ) -> None:
        self.dataset, self.statistics, self.device = dataset, statistics, device
        self.tokenizer = tokenizer.to(device).eval()
        self.kept: dict[MotionChoice, Tensor] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def num_frames(self, index: int) -> int:
        """Length of item ``index`` in frames of motion."""
        return self.dataset.num_frames(index)

    def draw(self, index: int, epoch: int) -> CodeItem:
        """``MotionDataset.draw``, encoded."""
        choice, caption = self.dataset.choose(index, epoch)
        if choice not in self.kept:
            self.kept[choice] = self._encode(self.dataset.motion(choice).to(self.device))
        return {"name": self.dataset.names[index], "codes": self.kept[choice], "caption": caption}

    @torch.no_grad()
    def _encode(self, motion: Tensor) -> Tensor:
        steps, frames = motion.shape[1] // DOWNSAMPLING, grid_steps(self.dataset.max_frames) * DOWNSAMPLING
        normalised = self.statistics.normalise(motion)
        padded = nn.functional.pad(normalised, (0, 0, 0, max(frames - motion.shape[1], 0)))[:, :frames]
        return self.tokenizer.encode(padded)[..., :steps]


def grid_steps(max_frames: int) -> int:
    """Time steps of the codes of the longest motion."""
    return max_frames // DOWNSAMPLING


class UnmaskingObjective(Objective):
    """Masked transformer and text encoder, and their losses on batches of codes."""

    def __init__(self, config: InterMaskTrainConfig, text: TextEncoder) -> None:
        super().__init__()
        self.network = InterMask(config.model)
        self.text = text
        self.person_share, self.condition_dropout = config.person_share, config.condition_dropout
        self.grid = (PERSONS, config.model.num_parts, grid_steps(config.data.max_frames))

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """Pad to the longest item: ``codes`` (B, 2, 5, L) and ``mask`` (B, L)."""
        steps = torch.tensor([item["codes"].shape[-1] for item in items])
        longest = int(steps.max())
        rows = [nn.functional.pad(item["codes"], (0, longest - item["codes"].shape[-1])) for item in items]
        return {
            "names": [item["name"] for item in items],
            "captions": [item["caption"] for item in items],
            "codes": torch.stack(rows),
            "mask": (torch.arange(longest) < steps[:, None]).to(rows[0].device),
        }

    def repeated_parts(self) -> list[nn.Module]:
        """The transformer's layers."""
        return list(self.network.layers)

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """The terms of ``unmasking_losses``; in validation always with the text."""
        text = self.text(batch["captions"])
        kept = draws.uniform() >= self.condition_dropout
        numbers = MaskDraws(draws.uniform(3), draws.uniform(*self.grid, 4))
        masked = mask_codes(self.network, batch["codes"], batch["mask"], numbers, self.person_share)
        if not validating:
            text = text * kept[:, None]
        return unmasking_losses(self.network, batch["codes"], masked, text, batch["mask"])


def run_intermask(
    config_path: str | Path,
    output_dir: str | Path,
    tokenizer: str | Path,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Train masked transformer and text encoder; returns ``output_dir/model``, for ``MotionPipeline.from_pretrained``.

    Args:
        config_path: YAML or JSON of ``InterMaskTrainConfig``.
        output_dir: gets ``config.json``, a copy of ``tokenizer``, ``tokenizer.json``, ``checkpoints/``, ``logs/`` and,
            at the end, ``model/``.
        tokenizer: model folder that ``run_tokenizer`` wrote; on ``resume`` it must hold the weights of the run's copy.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration, tokeniser or data, named. FileNotFoundError: no such tokeniser.
        FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(InterMaskTrainConfig.load(config_path), data)
    output_dir, source = Path(output_dir), Path(tokenizer)
    motion_tokenizer, statistics = load_tokenizer_folder(source)
    sizes = motion_tokenizer.config.num_codes
    if config.model.num_codes != sizes:
        raise ValueError(f"model.num_codes: expected {sizes} for this tokeniser, got {config.model.num_codes}")
    copy, weights, folder = output_dir / "tokenizer", "model.safetensors", output_dir / "model"
    if resume and copy.exists() and not filecmp.cmp(source / weights, copy / weights, shallow=False):
        raise ValueError(
            f"tokenizer: expected the weights of {copy}, with which the run was started, got others in {source}"
        )
    train = run.open_split(config, "train", min_frames=config.data.min_frames)
    validation = run.open_split(config, "val", min_frames=config.data.min_frames)
    text = prepare_text(config, config.text, train, output_dir, resume=resume)
    run.check_captions(text, train, validation)
    objective = UnmaskingObjective(config, text)
    with run.claimed(config, output_dir, resume=resume, splits={"train": train, "val": validation}) as accelerator:
        run.once(accelerator, copy, functools.partial(_copy, source), resume=resume)
        keep_tokenizer(accelerator, text, output_dir, resume=resume)
        splits = [CodeDataset(split, motion_tokenizer, statistics, accelerator.device) for split in (train, validation)]
        state = fit(accelerator, objective, config, splits[0], splits[1], output_dir, resume=resume)
        if state is not None:
            objective.load_state_dict(state)
            _save_pipeline(folder, config, objective.cpu(), motion_tokenizer.cpu(), statistics)
    return folder


def _save_pipeline(
    folder: Path,
    config: InterMaskTrainConfig,
    objective: UnmaskingObjective,
    tokenizer: MotionTokenizer,
    statistics: Statistics,
) -> None:
    sizes = tokenizer.config
    if sizes.messages == "first_frame_of_batch":
        sizes = dataclasses.replace(sizes, messages="first_frame")  # generated motion stands alone
    made = InterMaskModelConfig(
        name=config.name,
        fps=DATA_SETS[config.data.representation].representation.fps,
        min_frames=config.data.min_frames,
        max_frames=config.data.max_frames,
        network=config.model,
        tokenizer=sizes,
        text=config.text,
    )
    parts = {"network": objective.network, "tokenizer": tokenizer, "text": objective.text}
    with replacing_folder(folder) as temporary:
        write_model(temporary, made, parts, statistics, objective.text.tokenizer_json)
        run.write_config(temporary / "training.json", run.without_paths(config))


def _copy(source: Path, folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


TRAINER_OF_TOKENIZER = run.Training(TokenizerTrainConfig, run_tokenizer)
TRAINER = run.Training(InterMaskTrainConfig, run_intermask, start="tokenizer", needs_start=True)
