"""Ablations: variants of one training configuration, each trained and measured alike, in one table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from intermoe.config import Config, _require, check_folder_name
from intermoe.data.batching import collate, pad_motion
from intermoe.data.dataset import MotionDataset
from intermoe.eval.protocol import PROTOCOLS
from intermoe.evaluators.evaluator import Evaluator, weights_digest
from intermoe.files import read_sealed, replacing_folder, write_json, write_sealed, write_tensors, write_text
from intermoe.metrics.clips import Clip, measure
from intermoe.metrics.distribution import frechet_distance, retrieval
from intermoe.routing.record import record_routing
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import run
from intermoe.train.config import DenoiserTrainConfig
from intermoe.train.denoiser import VALIDATION_NOISE_LEVELS, DenoiserObjective, run_denoiser
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import LatentEncoder
from intermoe.train.vae import load_vae_folder

if TYPE_CHECKING:
    from torch import Tensor

GROUND_TRUTH = "ground truth"
TABLES = ("ablation.json", "ablation.md")
"""What a report is written to."""
Numbers = dict[str, float | None]

# Columns of the table; everything measured is in the JSON file.
_TITLES = {
    "parameters": "denoiser (M)",
    "validation_loss": "validation loss",
    "experts_per_token": "experts per token",
    "bone_variation": "bone variation (%)",
    "foot_skating_share": "sliding feet (%)",
    "jitter": "jitter (m/s³)",
    "pelvis_wasserstein_cm": "pelvis distance, Wasserstein (cm)",
    "turn_direction": "turn direction (%)",
    "fid": "FID",
    "r_precision_1": "R@1",
}
_DIGITS = {"validation_loss": 4, "fid": 4, "r_precision_1": 3, "jitter": 0}
_PUBLISHED = {"fid": "FID", "r_precision_1": "R@1"}


@dataclass(frozen=True)
class Variant(Config):
    """One row: ``changes`` map dotted keys of ``DenoiserTrainConfig`` to values, ``published`` metrics to numbers."""

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_folder_name(self.name, GROUND_TRUTH, *TABLES)
        for key in self.published:
            _require(key in _PUBLISHED, "published", f"a mapping of {tuple(_PUBLISHED)}", key)


@dataclass(frozen=True)
class AblationConfig(Config):
    """A table: ``base`` is the file of a ``DenoiserTrainConfig``, relative to this configuration's own file."""

    base: str
    variants: tuple[Variant, ...]
    published_on: str = "InterHuman"

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        _require(bool(names) and len(set(names)) == len(names), "variants", "at least one, no name twice", names)


@dataclass(frozen=True)
class AblationSettings(Config):
    """What all rows share: training ``steps`` (``None``: the base's), seeds of generated clips, and the sampler's."""

    steps: int | None = None
    seeds: tuple[int, ...] = (0,)
    num_inference_steps: int = 50
    guidance_scale: float = 3.5

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps >= 1, "steps", ">= 1", self.steps)
        ok = bool(self.seeds) and all(0 <= seed < 2**32 for seed in self.seeds)
        _require(ok, "seeds", "at least one, each in [0, 2**32)", self.seeds)
        _require(self.num_inference_steps >= 1, "num_inference_steps", ">= 1", self.num_inference_steps)
        _require(1.0 <= self.guidance_scale < math.inf, "guidance_scale", ">= 1 and finite", self.guidance_scale)


@dataclass(frozen=True)
class AblationReport:
    """Numbers of the ground truth and of each finished variant, beside what was published."""

    config: AblationConfig
    settings: dict[str, Any]
    rows: dict[str, Numbers]

    def table(self) -> list[list[str]]:
        """Header and a line for every row; columns that no row has are left out."""
        shown = [key for key in _TITLES if any(row.get(key) is not None for row in self.rows.values())]
        published = [f"published {title} ({self.config.published_on})" for title in _PUBLISHED.values()]
        variants = {variant.name: variant for variant in self.config.variants}
        lines = [["variant", *(_TITLES[key] for key in shown), *published]]
        for name, row in self.rows.items():
            title, own = (variants[name].title, variants[name].published) if name in variants else (name, {})
            values = [_written(row.get(key), _DIGITS.get(key, 2)) for key in shown]
            lines.append([title, *values, *(_written(own.get(key), 3) for key in _PUBLISHED)])
        return lines

    def save(self, folder: Path) -> None:
        """Write ``ablation.json`` and ``ablation.md``, each whole or not at all."""
        published = {variant.name: variant.published for variant in self.config.variants if variant.published}
        content = {
            "settings": self.settings,
            "rows": self.rows,
            "published": {"on": self.config.published_on, **published},
        }
        header, *lines = self.table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        text = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.settings.items())
        note = f"\n\nSettings: {settings}. Published numbers are of other data and another evaluator.\n"
        write_json(folder / TABLES[0], content)
        write_text(folder / TABLES[1], text + note)


def variant_configs(matrix: str | Path, *, steps: int | None = None) -> dict[str, DenoiserTrainConfig]:
    """The training configuration of each variant of an ``AblationConfig`` file, by name.

    ``steps`` replaces the base's number of steps; the warm-up then is a tenth of them at most, and the text encoder is
    trained on its own for no more steps either.

    Raises:
        ValueError: an unknown key or a bad value, with the file and the variant's name.
    """
    config = AblationConfig.load(matrix)
    base = DenoiserTrainConfig.load(Path(matrix).parent / config.base).to_dict()
    if steps is not None:
        base["optim"]["steps"] = steps
        base["optim"]["warmup_steps"] = min(base["optim"]["warmup_steps"], steps // 10)
        base["text_pretraining"]["steps"] = min(base["text_pretraining"]["steps"], steps)
    configs = {}
    for variant in config.variants:
        values = copy.deepcopy(base)
        for key, value in variant.changes.items():
            *sections, last = key.split(".")
            section: Any = values
            for part in sections:
                section = section.get(part) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                raise ValueError(f"{matrix}: {variant.name}: unknown key {key!r}")
            section[last] = value
        configs[variant.name] = DenoiserTrainConfig.from_dict(values, where=f"{matrix}: {variant.name}")
    return configs


def check_names(configs: Collection[str], only: Sequence[str]) -> None:
    """Raise ``ValueError`` unless all of ``only`` are names of variants."""
    unknown = [name for name in only if name not in configs]
    if unknown:
        raise ValueError(f"only: expected some of the variants {', '.join(configs)}, got {unknown}")


def run_ablation(
    matrix: str | Path,
    output_dir: str | Path,
    *,
    data: str | Path,
    vae: str | Path,
    settings: AblationSettings,
    only: Sequence[str] = (),
    evaluator: Evaluator | None = None,
    model: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> AblationReport:
    """Train and measure every variant with the same seed and data; finished ones are read, begun ones go on.

    All variants are measured on the items of the split "val": validation loss and routing on the data, the rest on one
    motion for each of the first captions that all items have. FID (scaled as in the data's protocol) is against those
    items and R@1 among them, so both need an evaluator, and few items make both rough.

    Args:
        matrix: YAML or JSON of ``AblationConfig``.
        output_dir: gets a folder for each variant, ``ablation.json`` and ``ablation.md``, rewritten after each variant.
        vae: model folder of the autoencoder that all variants share.
        only: names of variants to do; all if empty.
        evaluator: from ``intermoe.evaluators.evaluator.load_evaluator``.
        model: whose autoencoder is written to ``vae`` where there is no such folder, after all else was checked.
        progress: called as ``progress(name, variants_done, variants)`` before each variant.

    Raises:
        ValueError: a wrong configuration or name; a variant's folder that holds a run with other settings.
    """
    config, output_dir = AblationConfig.load(matrix), Path(output_dir)
    configs = variant_configs(matrix, steps=settings.steps)
    check_names(configs, only)
    configs = {name: run.with_data(own, data) for name, own in configs.items() if not only or name in only}
    first = next(iter(configs.values()))
    if evaluator is not None and (evaluator.representation != first.data.representation or evaluator.reads_tokens):
        raise ValueError(
            f"evaluator: expected one that reads captions of {first.data.representation}, got {evaluator.kind}"
        )
    shared = {**settings.to_dict(), "steps": first.optim.steps, "seed": first.seed, "evaluator": evaluator is not None}
    dataset = run.open_split(first, "val", min_frames=first.data.min_frames)
    train = run.open_split(first, "train", min_frames=first.data.min_frames)
    if evaluator is not None:
        evaluator.check_text([caption for row in _captions(dataset) for caption in row])
    for own in configs.values():
        highest = own.diffusion.num_train_timesteps
        if settings.num_inference_steps > highest:
            raise ValueError(
                f"num_inference_steps: expected a value in [1, {highest}], got {settings.num_inference_steps}"
            )
    if model is not None and not Path(vae).is_dir():
        save_autoencoder(model, Path(vae))
    made_from = {
        "train": train.digest(),
        "val": dataset.digest(),
        "vae": weights_digest(load_vae_folder(vae)[0].state_dict()),
        "evaluator": "" if evaluator is None else weights_digest(evaluator.state_dict()),
    }
    rows: dict[str, Numbers] = {GROUND_TRUTH: _measure_truth(dataset, evaluator)}
    output_dir.mkdir(parents=True, exist_ok=True)
    report = AblationReport(config, shared, rows)
    for done, (name, own) in enumerate(configs.items()):
        if progress is not None:
            progress(name, done, len(configs))
        rows[name] = _row(output_dir / name, own, vae, dataset, settings, shared, made_from, evaluator)
        report.save(output_dir)
    return report


def save_autoencoder(model: str | Path, folder: Path) -> Path:
    """Write the autoencoder of a model, given as to ``from_pretrained``, as a folder that trains a denoiser."""
    pipeline = InterMoEPipeline.from_pretrained(model)
    with replacing_folder(folder) as temporary:
        run.write_config(temporary / "config.json", pipeline.config.vae)
        pipeline.statistics.save(temporary / "statistics.json")
        weights = {key: value.cpu().contiguous() for key, value in pipeline.vae.state_dict().items()}
        write_tensors(temporary / "model.safetensors", weights)
    return folder


def _row(
    folder: Path,
    config: DenoiserTrainConfig,
    vae: str | Path,
    dataset: MotionDataset,
    settings: AblationSettings,
    shared: dict[str, Any],
    made_from: dict[str, str],
    evaluator: Evaluator | None,
) -> Numbers:
    path, result = folder / "variant.yaml", folder / "result.json"
    written = {"settings": shared, "made_from": made_from, "config": run.without_paths(config).to_dict()}
    if result.exists():
        saved = read_sealed(result)
        if {key: saved.get(key) for key in written} == written:
            numbers: Numbers = saved["numbers"]
            return numbers
    begun = folder / "run" / run.CONFIG_FILE
    if begun.exists():  # a run could go on for more steps, but a row is one that was trained in one go
        run.require_same(DenoiserTrainConfig.load(begun), config, begun, free=run.PLACES)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(config.to_dict()))
    model = run_denoiser(path, folder / "run", vae=vae, resume=True)
    pipeline = InterMoEPipeline.from_pretrained(model)
    found = measure_variant(pipeline, config, dataset, settings, evaluator)
    write_sealed(result, {**written, "numbers": found})
    return found


@torch.no_grad()
def measure_variant(
    pipeline: InterMoEPipeline,
    config: DenoiserTrainConfig,
    dataset: MotionDataset,
    settings: AblationSettings,
    evaluator: Evaluator | None = None,
) -> Numbers:
    """All numbers of one variant; see ``run_ablation``."""
    loss, per_token, idle = _validate(pipeline, config, dataset)
    generated = _generate(pipeline, dataset, settings, config.data.batch_size)
    parameters = sum(parameter.numel() for parameter in pipeline.denoiser.parameters())
    return {
        "parameters": parameters / 1e6,
        "validation_loss": loss,
        "experts_per_token": per_token,
        "tokens_without_expert": idle,
        **_kinematics(generated, dataset),
        **(_embedded(generated, dataset, evaluator) if evaluator is not None else {}),
    }


def _generate(
    pipeline: InterMoEPipeline, dataset: MotionDataset, settings: AblationSettings, batch_size: int
) -> list[tuple[Tensor, str]]:
    """A motion for every seed and caption of ``_captions``, in its order; items of similar length share a batch."""
    captions, count = _captions(dataset), len(dataset)
    order = sorted(range(count), key=dataset.num_frames)
    generated: list[tuple[Tensor, str]] = []
    for seed in settings.seeds:
        for turn, prompts in enumerate(captions):
            first = (seed * len(captions) + turn) * count
            motions: dict[int, Tensor] = {}
            for start in range(0, count, batch_size):
                batch = order[start : start + batch_size]
                made = pipeline.sample(
                    [prompts[i] for i in batch],
                    [dataset.num_frames(i) for i in batch],
                    [first + i for i in batch],
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                )
                motions |= zip(batch, made, strict=True)
            generated += [(motions[i], prompts[i]) for i in range(count)]
    return generated


def _validate(
    pipeline: InterMoEPipeline, config: DenoiserTrainConfig, dataset: MotionDataset
) -> tuple[float, float, float]:
    """Validation loss as in training, experts per valid token, and the share of valid tokens without any."""
    objective = DenoiserObjective(config, LatentEncoder(pipeline.codec), pipeline.text_encoder)
    objective.denoiser = pipeline.denoiser
    objective.eval()
    size, total, pairs, idle, tokens = config.data.batch_size, 0.0, 0, 0, 0
    for start in range(0, len(dataset), size):
        items = [dataset.draw(index, 0) for index in range(start, min(start + size, len(dataset)))]
        draws = ItemDraws((config.seed, 1), range(start, start + len(items)), pipeline.device)
        with record_routing(pipeline.denoiser) as record:
            values = objective(collate(items), draws, validating=True)
        total += len(items) * values["loss"].item()
        chosen = record.stacked()  # padding takes nothing
        frames = sum(item["motion"].shape[1] // pipeline.vae.downsampling for item in items)
        valid = frames * pipeline.representation.persons * len(VALIDATION_NOISE_LEVELS) * chosen.shape[1]
        pairs, tokens = pairs + int(chosen.sum()), tokens + valid
        idle += valid - int(chosen.any(axis=-1).sum())
    return total / len(dataset), pairs / tokens, idle / tokens


def _measure_truth(dataset: MotionDataset, evaluator: Evaluator | None) -> Numbers:
    captions = _captions(dataset)
    motions = [dataset[index]["motion"] for index in range(len(dataset))]
    pairs = [(motion, caption) for row in captions for motion, caption in zip(motions, row, strict=True)]
    found = _kinematics(pairs, dataset)
    if evaluator is not None:
        found |= _embedded(pairs, dataset, evaluator)
        del found["fid"]  # of the data against themselves
    return found


def _captions(dataset: MotionDataset) -> list[list[str]]:
    """The first captions of all items, the second, and so on, as far as every item has one."""
    return [list(row) for row in zip(*(dataset.captions(index) for index in range(len(dataset))), strict=False)]


def _kinematics(motions: Sequence[tuple[Tensor, str]], dataset: MotionDataset) -> Numbers:
    if dataset.data_set.representation.persons != 2:
        return {}
    clips = [Clip(_joints(motion, dataset), (caption,)) for motion, caption in motions]
    truth = [Clip(_joints(dataset[index]["motion"], dataset)) for index in range(len(dataset))]
    found = measure(clips, truth, paired=False)
    return {key: value for key, value in found.items() if key not in ("clips", "joint_error_cm")}


def _joints(motion: Tensor, dataset: MotionDataset) -> Any:
    return dataset.data_set.representation.joints(motion).float().numpy()


@torch.no_grad()
def _embedded(motions: Sequence[tuple[Tensor, str]], dataset: MotionDataset, evaluator: Evaluator) -> Numbers:
    truth = _embed(evaluator, [dataset[index]["motion"] for index in range(len(dataset))])
    motion = _embed(evaluator, [motion for motion, _ in motions])
    text = evaluator.embed_text([caption for _, caption in motions]).cpu().numpy()
    found = retrieval(text, motion, len(dataset))
    return {
        "fid": frechet_distance(motion, truth, scale=PROTOCOLS[dataset.data_set.name].scale),
        **{f"r_precision_{k}": value for k, value in enumerate(found.r_precision, start=1)},
        "mm_dist": found.mm_dist,
    }


def _embed(evaluator: Evaluator, motions: Sequence[Tensor]) -> Any:
    padded, lengths = pad_motion(motions)
    return evaluator.embed_motion(padded.to(evaluator.device), lengths).cpu().numpy().astype(np.float64)


def _written(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
