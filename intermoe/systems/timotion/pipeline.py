"""A model of TIMotion: InterGen's pipeline around another network."""

from __future__ import annotations

from torch import nn

from intermoe.systems.intergen.pipeline import RawMotionPipeline
from intermoe.systems.timotion.config import TIMotionConfig, TIMotionModelConfig
from intermoe.systems.timotion.network import TIMotion


class TIMotionPipeline(RawMotionPipeline):
    """A model of TIMotion."""

    config_type = TIMotionModelConfig

    @staticmethod
    def build_network(config: TIMotionConfig) -> nn.Module:
        """TIMotion's network, freshly drawn."""
        return TIMotion(config)
