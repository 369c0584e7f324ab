"""Models of other systems with experts in place of their feed-forward networks, saved and loaded like any other.

Each is a pipeline around the system's own network, in which ``replace_feed_forward`` has been: what differs in a
comparison is the block alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from intermoe.config import _require
from intermoe.integrations.replace import replace_feed_forward
from intermoe.systems.intergen.config import InterGenConfig, RawMotionConfig
from intermoe.systems.intergen.network import InterGen
from intermoe.systems.intergen.pipeline import RawMotionPipeline
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotion


@dataclass(frozen=True)
class ExpertsConfig(InterGenConfig):
    """Sizes of a network and of its experts; ``feedforward_dim`` is that of what they replace, and says nothing more.

    ``num_experts``, ``expert_dim``, ``capacity`` and ``bias_rate`` are those of ``InterMoEBlock``.
    """

    num_experts: int = 8
    expert_dim: int = 1024
    capacity: float = 1.0
    bias_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_experts", "expert_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        bound = f"a value in (0, num_experts={self.num_experts}]"
        _require(0.0 < self.capacity <= self.num_experts, "capacity", bound, self.capacity)
        _require(self.bias_rate >= 0.0, "bias_rate", ">= 0", self.bias_rate)


@dataclass(frozen=True)
class InterGenExpertsConfig(ExpertsConfig):
    """InterGen's network with experts."""


@dataclass(frozen=True)
class TIMotionExpertsConfig(ExpertsConfig, TIMotionConfig):
    """TIMotion's network with experts; they are as wide as its tokens, 2 ``dim``."""


@dataclass(frozen=True)
class InterGenExpertsModelConfig(RawMotionConfig):
    """A model of InterGen with experts."""

    system: str = "intergen-experts"
    name: str = "intergen-experts"
    network: InterGenExpertsConfig = field(default_factory=InterGenExpertsConfig)


@dataclass(frozen=True)
class TIMotionExpertsModelConfig(RawMotionConfig):
    """A model of TIMotion with experts."""

    system: str = "timotion-experts"
    name: str = "timotion-experts"
    network: TIMotionExpertsConfig = field(default_factory=TIMotionExpertsConfig)


def with_experts(network: nn.Module, config: ExpertsConfig) -> nn.Module:
    """``network`` with experts in every layer, routed on timestep and text."""
    sizes = {name: getattr(config, name) for name in ("num_experts", "expert_dim", "capacity", "bias_rate")}
    replace_feed_forward(network, **sizes)
    return network


class InterGenExpertsPipeline(RawMotionPipeline):
    """A model of InterGen with experts."""

    config_type = InterGenExpertsModelConfig

    @staticmethod
    def build_network(config: InterGenExpertsConfig) -> nn.Module:
        """InterGen's network, freshly drawn, with experts."""
        return with_experts(InterGen(config), config)


class TIMotionExpertsPipeline(RawMotionPipeline):
    """A model of TIMotion with experts."""

    config_type = TIMotionExpertsModelConfig

    @staticmethod
    def build_network(config: TIMotionExpertsConfig) -> nn.Module:
        """TIMotion's network, freshly drawn, with experts."""
        return with_experts(TIMotion(config), config)
