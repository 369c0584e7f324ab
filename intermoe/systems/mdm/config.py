"""Sizes of MDM and of the block that joins two of it; configurations of their models."""

from __future__ import annotations

from dataclasses import dataclass, field

from intermoe.config import Config, _require
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.systems.intergen.config import RawMotionConfig
from intermoe.text.protocol import TextConfig

ALONE = ("interhuman", "humanml3d", "solo")
"""Representations whose persons MDM makes, each alone."""


@dataclass(frozen=True)
class MDMConfig(Config):
    """One person's diffusion transformer. Frames attend to padding only with ``mask_padding`` off, as published."""

    input_dim: int = 263
    text_dim: int = 512
    dim: int = 512
    num_layers: int = 8
    num_heads: int = 4
    feedforward_dim: int = 1024
    dropout: float = 0.1
    mask_padding: bool = True

    def __post_init__(self) -> None:
        for name in ("input_dim", "text_dim", "dim", "num_layers", "num_heads", "feedforward_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        ok = self.dim % 2 == 0 and self.dim % self.num_heads == 0
        _require(ok, "dim", f"an even multiple of num_heads={self.num_heads}", self.dim)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)


@dataclass(frozen=True)
class ComMDMConfig(Config):
    """MDM for two persons that communicate once, after ``split`` of the backbone's layers."""

    backbone: MDMConfig = field(default_factory=MDMConfig)
    split: int = 8
    num_layers: int = 2
    num_heads: int = 4
    feedforward_dim: int = 1024

    def __post_init__(self) -> None:
        layers = self.backbone.num_layers
        _require(0 <= self.split <= layers, "split", f"a value in [0, backbone.num_layers={layers}]", self.split)
        for name in ("num_layers", "num_heads", "feedforward_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        dim = self.backbone.dim
        _require(dim % self.num_heads == 0, "num_heads", f"a divisor of backbone.dim={dim}", self.num_heads)

    @property
    def input_dim(self) -> int:
        """Width of one person's frame."""
        return self.backbone.input_dim

    @property
    def text_dim(self) -> int:
        """Width of the text condition."""
        return self.backbone.text_dim


def _check_representation(name: str, names: tuple[str, ...], network: MDMConfig | ComMDMConfig) -> None:
    _require(name in names, "representation", f"one of {names}", name)
    width = REPRESENTATIONS[name].frame_size
    _require(network.input_dim == width, "network.input_dim", f"{width} for {name}", network.input_dim)


@dataclass(frozen=True)
class MDMModelConfig(RawMotionConfig):
    """A model of MDM. ``representation``: of its motion, in which one person starts at the origin, facing Z+."""

    system: str = "mdm"
    name: str = "mdm"
    fps: int = 20
    representation: str = "humanml3d"
    network: MDMConfig = field(default_factory=MDMConfig)
    text: TextConfig = field(default_factory=lambda: TextConfig(output_dim=512))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_representation(self.representation, ALONE, self.network)

    @property
    def default_steps(self) -> int:
        """Every step of the schedule, by ancestral sampling."""
        return self.diffusion.num_train_timesteps

    @property
    def default_guidance(self) -> float:
        """That of the published text-to-motion model."""
        return 2.5


@dataclass(frozen=True)
class ComMDMModelConfig(RawMotionConfig):
    """A model of ComMDM. ``representation``: of what its network diffuses, each person in their own frame.

    What it makes is InterHuman's motion in any case, in which ``intermoe.systems.mdm.canonical`` places the two.
    """

    system: str = "commdm"
    name: str = "commdm"
    representation: str = "interhuman"
    network: ComMDMConfig = field(default_factory=lambda: ComMDMConfig(MDMConfig(262)))
    text: TextConfig = field(default_factory=lambda: TextConfig(output_dim=512))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_representation(self.representation, ("interhuman", "humanml3d"), self.network)

    @property
    def default_steps(self) -> int:
        """Every step of the schedule, by ancestral sampling."""
        return self.diffusion.num_train_timesteps

    @property
    def default_guidance(self) -> float:
        """None, as published for text to motion."""
        return 1.0
