"""Which pieces an estimate times, with how many steps, and what follows from it, by a clock by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe.eval import estimate as module
from intermoe.eval.estimate import Estimate, estimate
from intermoe.eval.runner import Piece

FRAMES = (18, 31, 17, 22, 16, 40, 19)


class Evaluation:
    """Seven items, each generated and once embedded alone, in each replication; ``cost(piece, steps)`` in seconds."""

    def __init__(self, steps: int, cost: Callable[[Piece, int], float]) -> None:
        self.settings = SimpleNamespace(num_inference_steps=steps)
        self.dataset = SimpleNamespace(num_frames=FRAMES.__getitem__)
        self.cost, self.clock, self.made = cost, 0.0, []
        self.roles: tuple[str, ...] = ("truth", "generated")

    def missing(self, replication: int) -> list[Piece]:
        return [Piece(role, n, ((n, 0),)) for role in self.roles for n in range(len(FRAMES))]

    def make(self, replication: int, piece: Piece, steps: int) -> dict[str, Any]:
        self.made.append((piece.role, FRAMES[piece.draws[0][0]], steps))
        self.clock += self.cost(piece, steps)
        frames = FRAMES[piece.draws[0][0]]
        return {"motion": np.zeros(frames, np.float64), "draws": np.zeros(2 * frames, np.float32)}


def of(steps: int, cost: Callable[[Piece, int], float], monkeypatch: pytest.MonkeyPatch) -> Any:
    evaluation = Evaluation(steps, cost)
    monkeypatch.setattr(module.time, "perf_counter", lambda: evaluation.clock)
    return evaluation


def test_pieces_of_middling_lengths_are_timed_after_one_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second shortest and the third longest of seven, with six steps and with two; the first call costs 1000 s."""

    def cost(piece: Piece, steps: int) -> float:
        frames = FRAMES[piece.draws[0][0]]
        first = 1000.0 if len(evaluation.made) in (1, 4) else 0.0
        return first + frames * (1 + 0.1 * steps if piece.generated else 0.5)

    evaluation = of(50, cost, monkeypatch)
    found = estimate(evaluation, 1, processes=2)
    assert evaluation.made == [
        ("truth", 17, 1), ("truth", 17, 1), ("truth", 22, 1), ("generated", 17, 1),
        ("generated", 17, 6), ("generated", 17, 2), ("generated", 22, 6), ("generated", 22, 2),
    ]  # fmt: skip
    total = sum(FRAMES)
    assert found.seconds == pytest.approx(total * (0.5 + 6) / 2)
    assert (found.motions, found.bytes) == (7, 2 * 16 * total)
    evaluation.made.clear()
    assert estimate(evaluation, 3).motions == 21
    assert [frames for role, frames, steps in evaluation.made if (role, steps) == ("generated", 2)] == [17, 31]


@pytest.mark.parametrize(("steps", "timed"), [(1, {1}), (4, {1, 4}), (6, {1, 6}), (7, {1, 2, 6})])
def test_few_steps_are_timed_as_they_are(steps: int, timed: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = of(steps, lambda piece, steps: 3.0 + steps**2, monkeypatch)
    evaluation.roles = ("generated",)
    found = estimate(evaluation, 1)
    assert {each for *_, each in evaluation.made} == timed
    # of two pieces of 39 frames together
    price = 3.0 + 36 + (36 - 4) / 4 if steps == 7 else 3.0 + steps**2
    assert found.seconds == pytest.approx(2 * price / 39 * sum(FRAMES))


def test_a_step_never_costs_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps that took shorter than two say that steps are for free."""
    evaluation = of(50, lambda piece, steps: {1: 5.0, 2: 11.0, 6: 10.0}[steps], monkeypatch)
    evaluation.roles = ("multimodal",)
    assert estimate(evaluation, 1).seconds == pytest.approx(2 * 10.0 / 39 * sum(FRAMES))
    evaluation.roles = ()
    assert estimate(evaluation, 1) == Estimate(0.0, 0, 0)
