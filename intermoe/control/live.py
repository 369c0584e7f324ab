"""Motion while it is made: a scene without end whose prompt may change at any time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from intermoe.config import check_several
from intermoe.control.scene import Lead, Scene
from intermoe.control.targets import Target

# How many frames a second that makes: `intermoe evaluate control --data DATA`.
CHUNK = 20
"""Frames that are decided together."""
STEPS = 4
"""Solver steps of each of these."""


class Live(Iterator[Tensor]):
    """Joints (P, t, J, 3) in metres, chunk after chunk without end, of a scene that goes on.

    Args:
        scene: whose frames these are.
        check: raises for a prompt that the model cannot take.
        prompt: what the persons do until ``send`` says otherwise.
        chunk: frames that are decided together.
        led: whether the system can be led to targets.
        surroundings: what a chunk is made in.
    """

    def __init__(
        self,
        scene: Scene,
        check: Callable[[str], None],
        prompt: str,
        chunk: int,
        *,
        led: bool = True,
        surroundings: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._scene, self._check, self._chunk, self._led = scene, check, chunk, led
        self._surroundings, self._turn = surroundings, threading.Lock()
        self._leads: Sequence[Lead] = ()
        self.send(prompt)

    def send(self, prompt: str) -> None:
        """Change the prompt, from the next chunk on.

        Raises:
            ValueError: one that the model cannot take; the scene goes on as before.
        """
        self._check(prompt)
        self.prompt = prompt

    def aim(self, leads: Sequence[Lead]) -> None:
        """Where joints shall be from the second half of the next chunk on, in place of what was said before.

        Each chunk takes longer so. Bones keep their lengths and feet the floor: what is out of reach is come near.

        Args:
            leads: (person, joint, place in metres) of each; none lets go.

        Raises:
            ValueError: a system that cannot be led, or a person, joint or place that is none; nothing changes.
            TypeError: a value of another kind.
        """
        leads = check_several(leads, "leads")
        if leads and not self._led:
            raise ValueError("leads: expected a system that can be led to targets, got another")
        for index, lead in enumerate(leads):
            if len(check_several(lead, f"leads[{index}]")) != 3:
                raise ValueError(f"leads[{index}]: expected a person, a joint and a place, got {lead!r}")
            who, joint, place = lead
            Target(who, joint, [0], positions=[place]).check(1, self._scene.representation.persons)
        self._leads = leads

    def __next__(self) -> Tensor:
        with self._turn, self._surroundings():  # of several threads each gets a chunk of its own, one after the other
            motion = self._scene.next(self.prompt, self._chunk, self._leads)
            return self._scene.representation.joints(motion).contiguous()

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        with self._turn:
            twin = copy.copy(self)
            twin._scene, twin._turn = copy.deepcopy(self._scene, memo), threading.Lock()
            return twin
