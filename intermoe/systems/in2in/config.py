"""Configuration of in2IN's guidance; its networks have InterGen's (``intermoe.systems.intergen.config``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from intermoe.config import Config, _require
from intermoe.systems.intergen.config import InterGenConfig, RawMotionConfig

SCHEDULES = ("exponential", "inverse_exponential", "linear", "constant")


@dataclass(frozen=True)
class GuidanceConfig(Config):
    """Weights of in2IN's four passes: with every text, the interaction's alone, the individuals' alone, and with none,
    which gets what is missing to 1. The defaults are the published ones.
    """

    everything: float = 3.0
    interaction: float = 3.0
    individuals: float = 1.0

    @property
    def nothing(self) -> float:
        """Weight of the pass without any text."""
        return 1.0 - self.everything - self.interaction - self.individuals


@dataclass(frozen=True)
class DualMDMConfig(Config):
    """How DualMDM mixes the estimate of an interaction with those of individuals; the defaults are the published ones.

    Both are guided on their own, with ``interaction_scale`` and ``individual_scale``. ``schedule`` is the individuals'
    weight at timestep t of N: ``"exponential"``: e^(-rate (N - t)); ``"inverse_exponential"``: 1 - that; ``"linear"``:
    t / N; ``"constant"``: rate.
    """

    interaction_scale: float = 3.5
    individual_scale: float = 2.5
    schedule: str = "exponential"
    rate: float = 0.0085
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        _require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}", self.schedule)
        _require(self.rate >= 0, "rate", ">= 0", self.rate)
        _require(self.num_train_timesteps >= 1, "num_train_timesteps", ">= 1", self.num_train_timesteps)


@dataclass(frozen=True)
class In2INModelConfig(RawMotionConfig):
    """A model of in2IN. ``guidance``: weights of its passes; a call's ``guidance_scale`` stands for ``everything``."""

    system: str = "in2in"
    name: str = "in2in"
    network: InterGenConfig = field(default_factory=InterGenConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
