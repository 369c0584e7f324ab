"""Training of MDM on single persons, then of ComMDM's block on top of it, frozen, on two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.config import _require
from intermoe.data.batching import collate
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS, STATISTICS_PASSES
from intermoe.data.statistics import compute_statistics
from intermoe.diffusion import DiffusionConfig, build_scheduler
from intermoe.files import replacing_folder
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.nn.multihead import EncoderLayer
from intermoe.systems.files import write_model
from intermoe.systems.mdm.canonical import to_own_frame
from intermoe.systems.mdm.config import ALONE, ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.systems.mdm.losses import motion_errors
from intermoe.systems.mdm.network import MDM, ComMDM
from intermoe.systems.mdm.pipeline import MDMPipeline
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.train import run
from intermoe.train.condition import keep_tokenizer, prepare_text
from intermoe.train.config import TrainConfig
from intermoe.train.denoiser import VALIDATION_NOISE_LEVELS
from intermoe.train.draws import ItemDraws
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit


@dataclass(frozen=True)
class MDMTrainConfig(TrainConfig):
    """Training of MDM and its text encoder. ``name`` goes into the saved pipeline.

    Of the data of two persons each is a sample of their own, starting at the origin and facing Z+. Of ``diffusion`` the
    schedule and ``condition_dropout`` are used.
    """

    trainer: str = "mdm"
    name: str = "mdm"
    model: MDMConfig = field(default_factory=MDMConfig)
    text: TextConfig = field(default_factory=lambda: TextConfig(output_dim=512))
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data(self, self.model, ALONE)
        expected = f"model.text_dim={self.model.text_dim}"
        _require(self.text.output_dim == self.model.text_dim, "text.output_dim", expected, self.text.output_dim)


@dataclass(frozen=True)
class ComMDMTrainConfig(TrainConfig):
    """Training of ComMDM's block; its backbone is a trained MDM, whose text encoder comes along, and both stay."""

    trainer: str = "commdm"
    name: str = "commdm"
    model: ComMDMConfig = field(default_factory=ComMDMConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data(self, self.model.backbone, ("interhuman",))


def _check_data(config: TrainConfig, model: MDMConfig, names: tuple[str, ...]) -> None:
    name = config.data.representation
    _require(name in names, "data.representation", f"one of {names}", name)
    width = REPRESENTATIONS[name].frame_size
    _require(model.input_dim == width, "model.input_dim", f"{width} for {name}", model.input_dim)


class OwnFrames:
    """``dataset`` with every person in their own frame; an item's ``entries`` (P, 262) say where they stood.

    HumanML3D's motion is in that frame as it comes, and has no entries.
    """

    def __init__(self, dataset: MotionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def num_frames(self, index: int) -> int:
        """Length of item ``index`` in frames."""
        return self.dataset.num_frames(index)

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """``MotionDataset.draw``, moved."""
        item: dict[str, Any] = dict(self.dataset.draw(index, epoch))
        if self.dataset.data_set.name == "interhuman":
            item["motion"], item["entries"] = to_own_frame(item["motion"])
        return item

    def statistics(self) -> Statistics:
        """Of the motion that is drawn in the first epochs."""
        return compute_statistics(_Epochs(self, STATISTICS_PASSES))


class _Epochs(Sequence[dict[str, Tensor]]):
    """The items of so many epochs, one after the other."""

    def __init__(self, items: OwnFrames, epochs: int) -> None:
        self.items, self.epochs = items, epochs

    def __len__(self) -> int:
        return self.epochs * len(self.items)

    def __getitem__(self, index: Any) -> Any:
        epoch, number = divmod(index, len(self.items))
        return self.items.draw(number, epoch)


class MDMObjective(Objective):
    """A network of MDM's kind with its text encoder, and its diffusion loss on batches of ``OwnFrames``.

    With ``ComMDM`` a canonical entry stands in front of each motion, and what of the network is frozen stays without
    dropout. Both persons count; the published training counts one, which of the two being a matter of the data.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: MDM | ComMDM, text: TextEncoder, diffusion: DiffusionConfig, statistics: Statistics
    ) -> None:
        super().__init__()
        self.network, self.text = network, text
        self.scheduler = build_scheduler("ddpm", diffusion)
        self.num_timesteps, self.condition_dropout = diffusion.num_train_timesteps, diffusion.condition_dropout
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std), persistent=False)
        if isinstance(network, ComMDM):
            network.backbone.requires_grad_(False)
            text.requires_grad_(False)

    def train(self, mode: bool = True) -> MDMObjective:
        """Training mode, but for what is not trained."""
        super().train(mode)
        if isinstance(self.network, ComMDM):
            self.network.backbone.eval()
            self.text.eval()
        return self

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """Batches of ``intermoe.data.collate``, with ``entries`` (B, P, 262) where items have them."""
        batch: dict[str, Any] = dict(collate(items))
        if "entries" in items[0]:
            batch["entries"] = torch.stack([item["entries"] for item in items])
        return batch

    def repeated_parts(self) -> list[nn.Module]:
        """The networks' layers."""
        return [module for module in self.network.modules() if isinstance(module, EncoderLayer)]

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: the loss at random timesteps. Validation: at fixed ones, with fixed noise and always with text."""
        lengths = batch["lengths"]
        clean = (batch["motion"] - self.mean) / self.std
        if isinstance(self.network, ComMDM):
            clean = torch.cat([batch["entries"][:, :, None], clean], dim=2)
            lengths = lengths + 1
        mask = torch.arange(clean.shape[2], device=clean.device) < lengths[:, None]
        clean = clean.masked_fill(~mask[:, None, :, None], 0.0)
        noise = rearrange(draws.normal(lengths.tolist(), clean.shape[1], clean.shape[3]), "b t p x -> b p t x")
        noise = nn.functional.pad(noise, (0, 0, 0, clean.shape[2] - noise.shape[2]))
        text = self.text(batch["captions"])
        if not validating:
            timesteps = (draws.uniform() * self.num_timesteps).long()
            kept = draws.uniform() >= self.condition_dropout
            return {"loss": self._loss(clean, noise, timesteps, text * kept[:, None], mask)}
        values = {}
        for level in VALIDATION_NOISE_LEVELS:
            t = int(level * self.num_timesteps)
            timesteps = torch.full((len(clean),), t, device=clean.device)
            values[f"loss_t{t}"] = self._loss(clean, noise, timesteps, text, mask)
        return {"loss": torch.stack(list(values.values())).mean(), **values}

    def _loss(self, clean: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        return motion_errors(self.network(noisy, timesteps, text, mask), clean, mask).mean()


def run_mdm(
    config_path: str | Path, output_dir: str | Path, resume: bool = False, data: str | Path | None = None
) -> Path:
    """Train MDM and its text encoder; returns ``output_dir/model``, a folder for ``MotionPipeline.from_pretrained``.

    Its statistics are those of persons in their own frames.

    Args:
        config_path: YAML or JSON of ``MDMTrainConfig``.
        output_dir: gets ``config.json``, ``statistics.json``, ``tokenizer.json``, ``checkpoints``, ``logs``, ``model``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration or unusable data, named. FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(MDMTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    made = MDMModelConfig(
        **_shared(config),
        representation=config.data.representation,
        network=config.model,
        text=config.text,
        diffusion=config.diffusion,
    )
    train, validation = _open(config)
    text = prepare_text(config, config.text, train.dataset, output_dir, resume=resume)
    run.check_captions(text, train.dataset, validation.dataset)
    splits = {"train": train.dataset, "val": validation.dataset}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        path = output_dir / "statistics.json"
        run.once(accelerator, path, lambda path: train.statistics().save(path), resume=resume)
        keep_tokenizer(accelerator, text, output_dir, resume=resume)
        statistics = Statistics.load(path)
        objective = MDMObjective(MDM(config.model), text, config.diffusion, statistics)
        state = fit(accelerator, objective, config, train, validation, output_dir, resume=resume)
        if state is not None:
            _save_pipeline(output_dir / "model", config, made, objective, state, statistics)
    return output_dir / "model"


def run_commdm(
    config_path: str | Path,
    output_dir: str | Path,
    mdm: str | Path,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Train ComMDM's block on a trained MDM, as ``run_mdm`` does MDM; what of ``mdm`` comes along stays as it is.

    Args:
        mdm: model folder that ``run_mdm`` wrote; on ``resume`` the one that the run was started with.

    Raises:
        ValueError: also if ``mdm`` is no model of MDM, or ``model.backbone`` not its configuration.
    """
    config = run.with_data(ComMDMTrainConfig.load(config_path), data)
    single = MDMPipeline.from_pretrained(mdm)
    if config.model.backbone != single.config.network:
        expected = single.config.network
        raise ValueError(f"model.backbone: expected that of the MDM, {expected}, got {config.model.backbone}")
    output_dir = Path(output_dir)
    made = ComMDMModelConfig(
        **_shared(config), network=config.model, text=single.config.text, diffusion=config.diffusion
    )
    train, validation = _open(config)
    run.check_captions(single.text_encoder, train.dataset, validation.dataset)
    torch.manual_seed(config.seed)
    network = ComMDM(config.model)
    network.backbone.load_state_dict(single.network.state_dict())
    objective = MDMObjective(network, single.text_encoder, config.diffusion, single.statistics)
    splits = {"train": train.dataset, "val": validation.dataset}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        state = fit(accelerator, objective, config, train, validation, output_dir, resume=resume)
        if state is not None:
            _save_pipeline(output_dir / "model", config, made, objective, state, single.statistics)
    return output_dir / "model"


def _shared(config: MDMTrainConfig | ComMDMTrainConfig) -> dict[str, Any]:
    """What a model's configuration takes from that of its training whatever the system."""
    return {
        "name": config.name,
        "fps": DATA_SETS[config.data.representation].representation.fps,
        "min_frames": config.data.min_frames,
        "max_frames": config.data.max_frames,
    }


def _open(config: MDMTrainConfig | ComMDMTrainConfig) -> tuple[OwnFrames, OwnFrames]:
    train, validation = (run.open_split(config, name, min_frames=config.data.min_frames) for name in ("train", "val"))
    return OwnFrames(train), OwnFrames(validation)


def _save_pipeline(
    folder: Path,
    config: MDMTrainConfig | ComMDMTrainConfig,
    made: MDMModelConfig | ComMDMModelConfig,
    objective: MDMObjective,
    state: dict[str, Tensor],
    statistics: Statistics,
) -> None:
    objective.load_state_dict(state)
    objective.cpu()
    parts = {"network": objective.network, "text": objective.text}
    with replacing_folder(folder) as temporary:
        write_model(temporary, made, parts, statistics, objective.text.tokenizer_json)
        run.write_config(temporary / "training.json", run.without_paths(config))


TRAINER = run.Training(MDMTrainConfig, run_mdm)
TRAINER_OF_TWO = run.Training(ComMDMTrainConfig, run_commdm, start="mdm", needs_start=True)
