"""Models of MDM, which makes one person, and of ComMDM, which makes two and places them beside each other."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.systems.intergen.pipeline import RawMotionPipeline
from intermoe.systems.mdm.canonical import placement, to_common_frame, to_own_frame
from intermoe.systems.mdm.config import ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.systems.mdm.network import MDM, ComMDM
from intermoe.text.protocol import TextEncoder

_SCHEDULERS = ("ddpm", "ddim", "dpmsolver++", "unipc")  # as published first


class MDMPipeline(RawMotionPipeline):
    """A model of MDM: motion (1, T, ...) of one person, who starts at the origin, facing Z+."""

    config_type = MDMModelConfig
    schedulers = _SCHEDULERS

    def __init__(
        self, config: MDMModelConfig, network: nn.Module, text_encoder: TextEncoder, statistics: Statistics
    ) -> None:
        super().__init__(config, network, text_encoder, statistics)
        self.representation = dataclasses.replace(REPRESENTATIONS[config.representation], persons=1)

    @staticmethod
    def build_network(config: MDMConfig) -> nn.Module:
        """MDM's network, freshly drawn."""
        return MDM(config)


class ComMDMPipeline(RawMotionPipeline):
    """A model of ComMDM. In its motion person 1 starts at the origin, facing Z+.

    The network diffuses a canonical entry, then the person's motion in their own frame; see
    ``intermoe.systems.mdm.canonical``. Entries are not normalised.
    """

    config_type = ComMDMModelConfig
    controls = ()
    schedulers = _SCHEDULERS
    entries = 1

    @staticmethod
    def build_network(config: ComMDMConfig) -> nn.Module:
        """ComMDM's network, freshly drawn."""
        return ComMDM(config)

    def to_motion(self, x: Tensor) -> Tensor:
        """(B, 2, 1 + T, 262) to motion (B, 2, T, 262), person 2 placed beside person 1."""
        entries, motion = x[:, :, 0], self.statistics.denormalise(x[:, :, 1:])
        second = to_common_frame(motion[:, 1], *placement(entries[:, 0], entries[:, 1]))
        return torch.stack([motion[:, 0], second], dim=1)

    def from_motion(self, motion: Tensor) -> Tensor:
        """Motion (B, 2, T, 262) to each person's entry and motion in their own frame, (B, 2, 1 + T, 262)."""
        own, entries = to_own_frame(motion)
        return torch.cat([entries[:, :, None], self.statistics.normalise(own)], dim=2)
