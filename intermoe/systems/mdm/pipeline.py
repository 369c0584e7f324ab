"""Models of MDM, which makes one person, and of ComMDM, which makes two and places them beside each other."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from intermoe.motion.interhuman import from_joints
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
    ``intermoe.systems.mdm.canonical``. Entries are not normalised. Where that is HumanML3D's motion, as published, its
    joints become InterHuman's motion, at its own frame rate; rotations are then those of a rig fitted to the joints.
    """

    config_type = ComMDMModelConfig
    controls = ()
    schedulers = _SCHEDULERS
    entries = 1

    def __init__(
        self, config: ComMDMModelConfig, network: nn.Module, text_encoder: TextEncoder, statistics: Statistics
    ) -> None:
        super().__init__(config, network, text_encoder, statistics)
        self.representation = dataclasses.replace(self.representation, fps=config.fps)
        self.diffused = REPRESENTATIONS[config.representation]

    @staticmethod
    def build_network(config: ComMDMConfig) -> nn.Module:
        """ComMDM's network, freshly drawn."""
        return ComMDM(config)

    def to_motion(self, x: Tensor) -> Tensor:
        """(B, 2, 1 + T, X) to motion (B, 2, T, 262), person 2 placed beside person 1."""
        entries, motion = x[:, :, 0], self.statistics.denormalise(x[:, :, 1:])
        if self.diffused.name != self.representation.name:
            joints = self.diffused.joints(motion).float()
            motion = torch.stack([torch.stack([from_joints(person) for person in pair]) for pair in joints])
        second = to_common_frame(motion[:, 1], *placement(entries[:, 0], entries[:, 1]))
        return torch.stack([motion[:, 0], second], dim=1)

    def from_motion(self, motion: Tensor) -> Tensor:
        """Motion (B, 2, T, 262) to each person's entry and motion in their own frame, (B, 2, 1 + T, 262).

        Raises:
            ValueError: the network diffuses another representation, which does not follow from motion.
        """
        if self.diffused.name != self.representation.name:
            raise ValueError(f"motion: expected a network of {self.representation.name}, got {self.diffused.name}")
        own, entries = to_own_frame(motion)
        return torch.cat([entries[:, :, None], self.statistics.normalise(own)], dim=2)
