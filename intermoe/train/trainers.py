"""The trainers by name: a recipe says in ``trainer`` which of them it is for."""

from __future__ import annotations

from pathlib import Path

from intermoe.config import read_values
from intermoe.registry import Registry
from intermoe.train.run import Training

TRAINERS: Registry[Training] = Registry(
    "trainer",
    {
        "vae": "intermoe.train.vae:TRAINER",
        "denoiser": "intermoe.train.denoiser:TRAINER",
        "between": "intermoe.train.between:TRAINER",
        "distill": "intermoe.train.distill:TRAINER",
        "evaluator": "intermoe.train.evaluator:TRAINER",
        "motion": "intermoe.train.motion:TRAINER",
        "mdm": "intermoe.train.mdm:TRAINER",
        "commdm": "intermoe.train.mdm:TRAINER_OF_TWO",
        "tokenizer": "intermoe.train.intermask:TRAINER_OF_TOKENIZER",
        "intermask": "intermoe.train.intermask:TRAINER",
    },
)
"""What trains; one from outside the package comes with ``TRAINERS.add``."""


def trainer_of(config_path: str | Path) -> str:
    """Name of the trainer that a recipe is for. Raises ``ValueError`` where it names none or an unknown one."""
    values = read_values(config_path)
    name = values.get("trainer") if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in TRAINERS:
        raise ValueError(f"{config_path}: trainer: expected one of {', '.join(TRAINERS)}, got {name!r}")
    return name


def train(
    config_path: str | Path,
    output_dir: str | Path,
    *,
    start: str | Path | None = None,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Train as a recipe says, with the trainer that it names; returns ``output_dir/model``.

    Args:
        config_path: YAML or JSON with ``trainer``.
        output_dir: gets what that trainer's function says.
        start: model folder of the run before this one, for a trainer with ``Training.start``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: no or an unknown trainer, a start that it needs or has no use for; and as the trainer's function.
    """
    name = trainer_of(config_path)
    trainer = TRAINERS[name]
    if trainer.start is None and start is not None:
        raise ValueError(f"start: expected none, {name} starts from nothing, got {str(start)!r}")
    if trainer.needs_start and start is None:
        raise ValueError(f"start: expected the model folder ({trainer.start}) that {name} is trained on, got none")
    given = {} if trainer.start is None or start is None else {trainer.start: start}
    try:
        return trainer.run(config_path, output_dir, resume=resume, data=data, **given)
    except (ValueError, FileNotFoundError) as error:
        if trainer.start is None or not str(error).startswith(f"{trainer.start}: "):
            raise
        raise type(error)(f"start: {error}") from error  # the word that was given here
