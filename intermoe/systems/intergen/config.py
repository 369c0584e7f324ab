"""Configuration of networks that diffuse raw motion of several persons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from intermoe.config import Config, _require
from intermoe.diffusion import DiffusionConfig
from intermoe.pipeline import ModelConfig
from intermoe.text.protocol import TextConfig


@dataclass(frozen=True)
class InterGenConfig(Config):
    """Sizes of InterGen's network, which in2IN has too; the defaults are the published ones.

    ``input_dim`` is the width of a frame of one person's normalised motion, ``feedforward_dim`` the hidden width of the
    feed-forward networks, ``dropout`` that of attention weights and of the feed-forward networks.

    ``mask_padding`` sets padded frames to zero where they come in, so that nothing depends on what they hold. The
    published networks compute on them; what comes out is used by ``MotionLossConfig.step_into_padding`` alone.
    """

    input_dim: int = 262
    text_dim: int = 768
    dim: int = 1024
    num_layers: int = 8
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    mask_padding: bool = True

    def __post_init__(self) -> None:
        for name in ("input_dim", "text_dim", "num_layers", "num_heads", "feedforward_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.dim >= 2 and self.dim % 2 == 0, "dim", "even and >= 2 (sinusoids)", self.dim)
        width = self.attention_width
        _require(width % self.num_heads == 0, "num_heads", f"a divisor of {width}", self.num_heads)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)

    @property
    def attention_width(self) -> int:
        """Width of the tokens that attend to each other."""
        return self.dim


@dataclass(frozen=True)
class MotionLossConfig(Config):
    """Weights of the terms of ``intermoe.systems.intergen.losses.motion_losses``; the defaults are the published ones.

    All terms but ``simple`` count samples up to ``last_timestep``, where an estimate is clear enough to be judged as
    motion. Two habits of the published code are off, because they are mistakes: ``step_into_padding`` counts the step
    from the last valid frame to the first padded one as movement, ``orientation_of_all`` takes the orientation term
    over the valid frames of all samples as soon as one sample is up to ``last_timestep``.
    """

    simple: float = 1.0
    velocity: float = 30.0
    bones: float = 10.0
    feet: float = 30.0
    distances: float = 3.0
    touch: float = 3.0
    orientation: float = 0.01
    last_timestep: int = 700
    step_into_padding: bool = False
    orientation_of_all: bool = False

    def __post_init__(self) -> None:
        for name in ("simple", "velocity", "bones", "feet", "distances", "touch", "orientation", "last_timestep"):
            _require(getattr(self, name) >= 0, name, ">= 0", getattr(self, name))


class NetworkSizes(Protocol):
    """What a pipeline asks of a network's configuration: width of a frame and of the text condition."""

    @property
    def input_dim(self) -> int:
        """Width of one person's frame."""

    @property
    def text_dim(self) -> int:
        """Width of the text condition."""


@dataclass(frozen=True)
class RawMotionConfig(ModelConfig):
    """Everything that a pipeline of motion without latents needs besides weights and tokenizer; ``network`` is the
    system's own.
    """

    network: NetworkSizes = field(default_factory=InterGenConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"network.text_dim={self.network.text_dim}"
        _require(self.text.output_dim == self.network.text_dim, "text.output_dim", expected, self.text.output_dim)

    @property
    def max_steps(self) -> int:
        """Timesteps of the noise schedule."""
        return self.diffusion.num_train_timesteps


@dataclass(frozen=True)
class InterGenModelConfig(RawMotionConfig):
    """A model of InterGen."""

    system: str = "intergen"
    name: str = "intergen"
    network: InterGenConfig = field(default_factory=InterGenConfig)
