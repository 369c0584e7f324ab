"""How long an evaluation will take, from the time of a few of its pieces."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from intermoe.eval.runner import Evaluation, Piece

FEW, MORE = 2, 6
"""Denoising steps of the two timings whose difference is the price of a step."""
SAMPLES = 2
"""Pieces that are timed of each kind of work."""


@dataclass(frozen=True)
class Estimate:
    """``seconds`` until all processes are done, ``motions`` to generate, ``bytes`` of files to come."""

    seconds: float
    motions: int
    bytes: int


def estimate(evaluation: Evaluation, replications: int, *, processes: int = 1) -> Estimate:
    """Estimate what is left of an evaluation; nothing is written.

    Pieces of middling lengths are made, the generated ones with few denoising steps: the price of a step is the
    difference of two timings, and what does not depend on the steps is the rest. The price of a piece is taken to be
    proportional to its padded frames. A first piece of each kind warms up.

    Args:
        processes: that share the work.
    """
    left = [(number, piece) for number in range(replications) for piece in evaluation.missing(number)]
    seconds, size = 0.0, 0.0
    for generated in (False, True):
        same = [(number, piece) for number, piece in left if piece.generated is generated]
        if not same:
            continue
        same.sort(key=lambda pair: _frames(evaluation, pair[1]))
        places = np.linspace(0, len(same) - 1, 2 * SAMPLES + 1)[1::2].astype(int)
        chosen = [same[place] for place in dict.fromkeys(places.tolist())]
        steps = evaluation.settings.num_inference_steps if generated else 1
        few, more = min(FEW, steps), min(MORE, steps)
        _timed(evaluation, chosen[0][0], chosen[0][1], 1)
        price, weight, frames = 0.0, 0.0, 0
        for number, piece in chosen:
            long, written = _timed(evaluation, number, piece, more)
            if more < steps:
                short, _ = _timed(evaluation, number, piece, few)
                long += max(long - short, 0.0) / (more - few) * (steps - more)
            price, weight, frames = price + long, weight + written, frames + _frames(evaluation, piece)
        total = sum(_frames(evaluation, piece) for _, piece in same)
        seconds += price / frames * total / processes
        size += weight / frames * total
    motions = sum(len(piece.draws) for _, piece in left if piece.generated)
    return Estimate(seconds, motions, int(size))


def _frames(evaluation: Evaluation, piece: Piece) -> int:
    """Frames of a piece with padding."""
    return len(piece.draws) * max(evaluation.dataset.num_frames(index) for index, _ in piece.draws)


def _timed(evaluation: Evaluation, number: int, piece: Piece, steps: int) -> tuple[float, int]:
    started = time.perf_counter()
    arrays = evaluation.make(number, piece, steps)
    return time.perf_counter() - started, sum(array.nbytes for array in arrays.values())
