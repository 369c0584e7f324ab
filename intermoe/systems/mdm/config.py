"""Sizes of MDM and of the block that joins two of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from intermoe.config import Config, _require


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
        _require(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)", self.dropout)


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
        _require(0 <= self.split <= layers, "split", f"in [0, backbone.num_layers={layers}]", self.split)
        for name in ("num_layers", "num_heads", "feedforward_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        dim = self.backbone.dim
        _require(dim % self.num_heads == 0, "num_heads", f"a divisor of backbone.dim={dim}", self.num_heads)
