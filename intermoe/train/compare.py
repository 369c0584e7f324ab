"""A comparison: several systems trained on one data set with one seed and budget, and measured alike."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from intermoe.config import Config, _require, check_folder_name, read_values
from intermoe.data.dataset import MotionDataset
from intermoe.eval.compare import (
    GROUND_TRUTH,
    TABLES,
    ComparisonReport,
    ComparisonSettings,
    Numbers,
    check_system,
    measure_system,
    measure_truth,
)
from intermoe.eval.protocol import PROTOCOLS, SOURCES, Published
from intermoe.eval.runner import digest
from intermoe.evaluators.evaluator import Evaluator, load_evaluator
from intermoe.files import read_sealed, write_json, write_sealed
from intermoe.hub import model_folder
from intermoe.pipeline import MotionPipeline, model_config
from intermoe.train import run
from intermoe.train.config import TrainConfig
from intermoe.train.trainers import TRAINERS, train, trainer_of

EVALUATOR = "evaluator"
"""The folder of the evaluator, beside those of the systems."""
ROUGH = "few motions make FID, R-Precision and shares rough; published rows are of other data, sizes and evaluators"


@dataclass(frozen=True)
class ComparedSystem(Config):
    """One row: ``stages`` are recipes, relative to the comparison's own file, each started from the model before it.

    ``shares`` of the budget go to the stages, equal ones by default.
    """

    name: str
    title: str
    stages: tuple[str, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_folder_name(self.name, EVALUATOR, *TABLES)
        _require(bool(self.stages), "stages", "at least one recipe", self.stages)
        ok = not self.shares or len(self.shares) == len(self.stages)
        _require(ok, "shares", f"as many as stages, {len(self.stages)}", self.shares)
        ok = not self.shares or (min(self.shares) > 0 and math.isclose(sum(self.shares), 1.0))
        _require(ok, "shares", "positive shares with the sum 1", self.shares)


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """A table: its ``systems``, the recipe of the ``evaluator`` that judges them (``None``: none is trained), and the
    data set whose published rows stand beside.

    The evaluator is trained as its recipe says, but for no more steps than a system. ``changes`` maps dotted keys of
    recipes to values; a recipe that does not have a key keeps what it has.
    """

    systems: tuple[ComparedSystem, ...]
    evaluator: str | None = None
    published_on: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        _require(bool(names) and len(set(names)) == len(names), "systems", "at least one, no name twice", names)
        titles = [GROUND_TRUTH, *(system.title for system in self.systems)]
        _require(
            len(set(titles)) == len(titles), "systems", f"titles of their own, {GROUND_TRUTH!r} beside", titles[1:]
        )
        ok = self.published_on is None or self.published_on in PROTOCOLS
        _require(ok, "published_on", f"one of {tuple(PROTOCOLS)}", self.published_on)

    def recipe(self, path: Path) -> dict[str, Any]:
        """The values of a recipe, changed."""
        values: dict[str, Any] = dict(read_values(path))
        for key, value in self.changes.items():
            *sections, last = key.split(".")
            section: Any = values
            for part in sections:
                section = section.get(part, {}) if isinstance(section, dict) else {}
            if isinstance(section, dict) and last in section:
                section[last] = value
        return values

    def published(self) -> tuple[Published, ...]:
        """The rows that stand beside."""
        return () if self.published_on is None else PROTOCOLS[self.published_on].published


def stage_values(recipe: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """A recipe's values with so many steps and this seed; warm-up and what comes before training shrink along."""
    values = dict(recipe)
    optim = {**values.get("optim", {}), "steps": steps, "epochs": None, "warmup_epochs": None}
    optim["warmup_steps"] = min(optim.get("warmup_steps", steps), steps // 10)
    runs = values.get("run", {})
    runs = runs | {key: min(runs.get(key, steps), steps) for key in ("validate_every", "checkpoint_every")}
    values |= {"seed": seed, "optim": optim, "run": runs}
    if "text_pretraining" in values:
        first = values["text_pretraining"]
        values["text_pretraining"] = {**first, "steps": min(first.get("steps", 0), steps)}
    return values


def check_names(config: ComparisonConfig, names: Collection[str], argument: str) -> None:
    """Raise ``ValueError`` unless all of ``names`` are rows."""
    there = [system.name for system in config.systems]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"{argument}: expected some of the systems {', '.join(there)}, got {unknown}")


class Comparison:
    """One comparison in one folder.

    Args:
        matrix: YAML or JSON of ``ComparisonConfig``.
        output_dir: gets a folder for each system, ``comparison.json`` and ``comparison.md``.
        data: folder of the data.
        budget: training steps of every system, all its stages together.
        settings: how systems are measured; ``seed`` is that of training too.
        models: model folders of systems that are loaded in place of being trained, by the rows' names.
        evaluator: folder of an evaluator, in place of the one that the matrix trains.

    Raises:
        ValueError: a wrong configuration or name.
    """

    def __init__(
        self,
        matrix: str | Path,
        output_dir: str | Path,
        *,
        data: str | Path,
        budget: int,
        settings: ComparisonSettings,
        models: Mapping[str, str | Path] | None = None,
        evaluator: str | Path | None = None,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget: expected at least one step, got {budget}")
        self.config, self.recipes = ComparisonConfig.load(matrix), Path(matrix).parent
        self.folder, self.data, self.budget, self.settings = Path(output_dir), Path(data), budget, settings
        self.models = dict(models or {})
        check_names(self.config, self.models, "load")
        for name, model in self.models.items():
            try:
                model_config(model)
            except (ValueError, OSError) as error:
                raise ValueError(f"load: {name}: {error}") from error
        self.given_evaluator = evaluator
        if evaluator is None and self.config.evaluator is not None:
            self._recipe(self.config.evaluator, "evaluator")  # refuses one that cannot be trained
        self.stages = {system.name: self._stages(system) for system in self.config.systems}

    def _stages(self, system: ComparedSystem) -> list[tuple[str, dict[str, Any], TrainConfig]]:
        """Name, values and configuration of each stage; what is wrong with one is told before any work."""
        shares = system.shares or [1 / len(system.stages)] * len(system.stages)
        found = []
        for recipe, share in zip(system.stages, shares, strict=True):
            config_type, values = self._recipe(recipe, f"{system.name}: stages")
            values = stage_values(values, max(round(share * self.budget), 1), self.settings.seed)
            own = config_type.from_dict(values, where=system.name)
            found.append((Path(recipe).stem, values, run.with_data(own, self.data)))
        last, asked = found[-1][2], self.settings.steps
        diffusion = getattr(last, "diffusion", None)
        if asked is not None and asked < last.MIN_STEPS:
            raise ValueError(f"steps: expected >= {last.MIN_STEPS} for {system.name}, got {asked}")
        if diffusion is not None and asked is not None and asked > diffusion.num_train_timesteps:
            bound = f"a value in [1, {diffusion.num_train_timesteps}], the schedule of {system.name}"
            raise ValueError(f"steps: expected {bound}, got {asked}")
        return found

    def _recipe(self, recipe: str, where: str) -> tuple[type[TrainConfig], dict[str, Any]]:
        """A recipe's configuration class and its values, changed. Raises ``ValueError`` that names the file."""
        path = self.recipes / recipe
        try:
            config_type = TRAINERS[trainer_of(path)].config
            config_type.load(path)
        except FileNotFoundError as error:
            raise ValueError(f"{where}: expected a recipe: {error}") from error
        values = self.config.recipe(path)
        config_type.from_dict(values, where=f"{path}, changed")
        return config_type, values

    def run(
        self, *, only: Sequence[str] = (), progress: Callable[[str, int, int], None] | None = None
    ) -> ComparisonReport:
        """Do every system, or ``only`` some: finished ones are read, begun ones go on. Writes the table after each.

        Args:
            progress: called as ``progress(name, systems_done, systems)`` before each system.

        Raises:
            ValueError: an unknown name; systems of different data; a loaded model or evaluator that does not fit the
                data, before any work.
        """
        check_names(self.config, only, "only")
        chosen = [system for system in self.config.systems if not only or system.name in only]
        data = self.stages[chosen[0].name][-1][2]
        for system in chosen:
            own = self.stages[system.name][-1][2].data.representation
            if own != data.data.representation:
                raise ValueError(f"{system.name}: expected data of {data.data.representation}, got of {own}")
        train_split, dataset = (
            run.open_split(data, split, min_frames=data.data.min_frames) for split in ("train", "val")
        )
        for system in chosen:
            if system.name in self.models:
                try:
                    pipeline = MotionPipeline.from_pretrained(self.models[system.name])
                    check_system(pipeline, dataset, self.settings)
                except ValueError as error:
                    raise ValueError(f"load: {system.name}: {error}") from error
        content = {"train": train_split.digest(), "val": dataset.digest()}
        evaluator, judge = self._evaluator(content)
        name = data.data.representation
        if evaluator is not None and (evaluator.representation != name or evaluator.reads_tokens):
            raise ValueError(f"evaluator: expected one that reads captions of {name}, got {evaluator.kind}")
        rows: dict[str, Numbers] = {GROUND_TRUTH: measure_truth(dataset, self.settings, evaluator)}
        conditions = {
            "budget": f"{self.budget} steps a system",
            "data": self.data.name,
            "items": f"{len(train_split)} to train on, {len(dataset)} to measure on",
            **{key: value for key, value in self.settings.to_dict().items() if value is not None},
            "evaluator": "none" if evaluator is None else evaluator.kind,
            "threads": torch.get_num_threads(),
        }
        notes = (ROUGH, *(SOURCES if self.config.published() else ()))
        report = ComparisonReport(rows, self.config.published(), conditions, notes)
        for done, system in enumerate(chosen):
            if progress is not None:
                progress(system.name, done, len(chosen))
            rows[system.title] = self._row(system, dataset, {**content, "evaluator": judge}, evaluator)
            report.save(self.folder)
        return report

    def _evaluator(self, content: Mapping[str, str]) -> tuple[Evaluator | None, str]:
        """The evaluator, and which one it is; one that is trained is kept by the data that it is trained on."""
        folder = self.given_evaluator
        if folder is None and self.config.evaluator is not None:
            recipe = self.recipes / self.config.evaluator
            _, values = self._recipe(self.config.evaluator, "evaluator")
            steps = min(values["optim"]["steps"], self.budget)
            values = stage_values(values, steps, self.settings.seed)
            folder = self.folder / EVALUATOR / _key({"recipe": values, "content": content})
            folder, _ = self._train(folder, recipe.stem, values, None)
        return (None, "") if folder is None else (load_evaluator(folder), digest(Path(folder)))

    def _row(
        self, system: ComparedSystem, dataset: MotionDataset, content: dict[str, str], evaluator: Evaluator | None
    ) -> Numbers:
        """The numbers of one system, kept by what they are made from."""
        loaded = self.models.get(system.name)
        stages = [(name, values) for name, values, _ in self.stages[system.name]]
        made_from = {
            "settings": self.settings.to_dict(),
            "content": content,
            "made": digest(model_folder(loaded)) if loaded is not None else stages,
        }
        folder = self.folder / system.name / _key(made_from)
        result = folder / "result.json"
        if result.exists():
            numbers: Numbers = read_sealed(result)["numbers"]
            return numbers
        folder.mkdir(parents=True, exist_ok=True)
        model, seconds, steps = (None if loaded is None else Path(model_folder(loaded))), 0.0, None
        if model is None:
            steps = float(sum(values["optim"]["steps"] for _, values in stages))
            for name, values in stages:
                model, own = self._train(folder / name, name, values, model)
                seconds = seconds + own
        pipeline = MotionPipeline.from_pretrained(str(model))
        found = {
            "train_steps": steps,
            "train_seconds": seconds if loaded is None and math.isfinite(seconds) else None,
            **measure_system(pipeline, dataset, self.settings, evaluator),
        }
        write_sealed(result, {"title": system.title, "made_from": made_from, "numbers": found})
        return found

    def _train(self, folder: Path, name: str, values: Mapping[str, Any], start: Path | None) -> tuple[Path, float]:
        """Train a stage, or go on with it: the model's folder, and seconds (NaN where it was not one go)."""
        path, spent = folder / f"{name}.json", folder / "seconds.json"
        if spent.exists():
            return folder / "run" / "model", float(read_sealed(spent)["seconds"])
        whole = not (folder / "run").exists()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(values))
        started = time.perf_counter()
        model = train(path, folder / "run", start=start, resume=True, data=self.data)
        seconds = time.perf_counter() - started
        if whole:
            write_sealed(spent, {"seconds": seconds})
        return model, seconds if whole else math.nan


def _key(made_from: Any) -> str:
    """16 hexadecimal digits of plain values."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
