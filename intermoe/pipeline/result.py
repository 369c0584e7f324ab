"""What a call of a pipeline returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from intermoe.config import check_integer
from intermoe.export import Take, View, save_take
from intermoe.export.html import Page


@dataclass(frozen=True)
class PipelineResult:
    """Generated motion of N prompts."""

    joints: Tensor
    """(N, P, T, J, 3) float32 on CPU, metres, Y up, at ``fps``; two persons of 22 joints, for interhuman."""
    motion: Tensor
    """(N, P, T, ...) float32 on CPU in the model's representation, (N, 2, T, 262) for interhuman."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    fps: int

    def take(
        self, index: int = 0, *, details: Mapping[str, str | int | float] | None = None, view: View | None = None
    ) -> Take:
        """Motion ``index`` with all that a file may tell of it: prompt, seed, ``details``, and how it is looked at.

        Raises:
            ValueError: there is no such motion. TypeError: ``index`` is no integer.
        """
        index = check_integer(index, "index", low=0, high=len(self.prompts) - 1)
        return Take(
            self.joints[index].numpy(),
            self.fps,
            prompt=self.prompts[index],
            motion=self.motion[index].numpy(),
            details={"seed": self.seeds[index], **(details or {})},
            view=view or View(),
        )

    def save(self, path: str | Path, index: int = 0) -> list[Path]:
        """Write motion ``index`` in the format of the suffix (see ``intermoe.export.save``); returns the paths."""
        return save_take(path, self.take(index))

    def view(self, index: int = 0) -> Page:
        """Motion ``index`` in a notebook, as the last value of a cell; needs ``intermoe[view]``."""
        return Page(self.take(index))
