"""Motion while it is made: a scene without end whose prompt may change at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from intermoe.control.scene import Scene

CHUNK = 20
"""Frames that are decided together."""
STEPS = 4
"""Solver steps of each of these."""


class Live(Iterator[Tensor]):
    """Joints (P, t, J, 3) in metres, chunk after chunk without end, of a scene that goes on.

    Args:
        scene: whose frames these are. check: raises for a prompt that the model cannot take.
        prompt: what the persons do until ``send`` says otherwise. chunk: frames that are decided together.
    """

    def __init__(self, scene: Scene, check: Callable[[str], None], prompt: str, chunk: int) -> None:
        self._scene, self._check, self._chunk = scene, check, chunk
        self.send(prompt)

    def send(self, prompt: str) -> None:
        """Change the prompt, from the next chunk on.

        Raises:
            ValueError: one that the model cannot take; the scene goes on as before.
        """
        self._check(prompt)
        self.prompt = prompt

    def __next__(self) -> Tensor:
        return self._scene.representation.joints(self._scene.next(self.prompt, self._chunk)).contiguous()
