"""A system of somebody else's: persons beside each other who rise, by as much a frame as its only weight says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intermoe.files import write_json
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.pipeline import ModelConfig, MotionPipeline, check_batch


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    system: str = "toy"


class ToyPipeline(MotionPipeline):
    config_type = ToyConfig
    schedulers = ("none",)

    def __init__(self, config: ToyConfig, speed: float = 0.5) -> None:
        self.config, self.representation = config, REPRESENTATIONS["interhuman"]
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, speed)

    @classmethod
    def load(cls, folder: Path) -> ToyPipeline:
        made = cls(ToyConfig.load(folder / "config.json"))
        made.network.load_state_dict(load_file(folder / "model.safetensors"))
        return made

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder, "config.json"), self.config.to_dict())
        save_file(self.network.state_dict(), Path(folder, "model.safetensors"))

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], lengths: Sequence[int], seeds: Sequence[int], **options: Any
    ) -> list[Tensor]:
        check_batch(prompts, lengths, seeds)
        made = []
        for length in lengths:
            motion = torch.zeros(self.representation.persons, length, *self.representation.frame_shape)
            motion[..., 1:66:3] = self.network(torch.arange(float(length))[:, None])
            motion[1, :, :66:3] = 1.0
            made.append(motion)
        return made
