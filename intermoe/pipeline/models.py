"""The systems and models there are, and what the configuration of every model has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intermoe.config import Config, _require
from intermoe.hub import CONFIG_FILE, model_folder
from intermoe.motion.representation import FRAMES_TOGETHER
from intermoe.reading import read_json
from intermoe.registry import Registry

if TYPE_CHECKING:
    from intermoe.pipeline.base import MotionPipeline

SYSTEMS: Registry[type[MotionPipeline]] = Registry(
    "system",
    {
        "intermoe": "intermoe.systems.intermoe.pipeline:InterMoEPipeline",
        "intergen": "intermoe.systems.intergen.pipeline:InterGenPipeline",
        "timotion": "intermoe.systems.timotion.pipeline:TIMotionPipeline",
        "in2in": "intermoe.systems.in2in.pipeline:In2INPipeline",
        "intermask": "intermoe.systems.intermask.pipeline:InterMaskPipeline",
        "mdm": "intermoe.systems.mdm.pipeline:MDMPipeline",
        "commdm": "intermoe.systems.mdm.pipeline:ComMDMPipeline",
        "intergen-experts": "intermoe.integrations.systems:InterGenExpertsPipeline",
        "timotion-experts": "intermoe.integrations.systems:TIMotionExpertsPipeline",
    },
)


@dataclass(frozen=True)
class ModelConfig(Config):
    """What the configuration of every system's models has; each system adds its own parts.

    ``system`` names the system in ``SYSTEMS``; ``min_frames`` and ``max_frames`` bound what may be asked for.
    """

    system: str = "intermoe"
    name: str = "intermoe"
    fps: int = 30
    min_frames: int = 16
    max_frames: int = 300

    def __post_init__(self) -> None:
        _require(self.system in SYSTEMS, "system", f"one of {tuple(SYSTEMS)}", self.system)
        _require(self.fps >= 1, "fps", ">= 1", self.fps)
        _require(
            FRAMES_TOGETHER <= self.min_frames <= self.max_frames,
            "min_frames",
            f"a value in [{FRAMES_TOGETHER}, max_frames={self.max_frames}]",
            self.min_frames,
        )

    @property
    def max_steps(self) -> int | None:
        """Most solver steps that the model's schedule has; ``None`` for a system without one."""
        return None

    @property
    def min_steps(self) -> int:
        """Fewest solver steps."""
        return 1

    @property
    def default_steps(self) -> int:
        """Solver steps where nobody asks for others: the system's published number."""
        return 50

    @property
    def default_guidance(self) -> float:
        """Guidance scale where nobody asks for another: the system's published one."""
        return 3.5

    def check_steps(self, steps: int) -> None:
        """Raise ``ValueError`` for a number of solver steps that the model does not have."""
        if steps < self.min_steps or (self.max_steps is not None and steps > self.max_steps):
            bound = (
                f">= {self.min_steps}" if self.max_steps is None else f"a value in [{self.min_steps}, {self.max_steps}]"
            )
            raise ValueError(f"num_inference_steps: expected {bound} for {self.system}, got {steps}")


def model_config(path_or_name: str | Path) -> ModelConfig:
    """The configuration of a model; what it alone can refuse need not wait for the weights.

    Raises:
        FileNotFoundError, ValueError: as ``MotionPipeline.from_pretrained``.
    """
    path = model_folder(path_or_name) / CONFIG_FILE
    return system_of(path).config_type.load(path)


def system_of(path: Path) -> type[MotionPipeline]:
    """The system of a model's configuration. Raises ``ValueError`` for a file that names none of ``SYSTEMS``."""
    values: Any = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(values).__name__}")
    system = values.get("system", "intermoe")  # models of before there were several systems
    if not isinstance(system, str) or system not in SYSTEMS:
        raise ValueError(f"{path}: system: expected one of {', '.join(SYSTEMS)}, got {system!r}")
    return SYSTEMS[system]
