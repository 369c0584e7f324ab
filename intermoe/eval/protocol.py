"""The published evaluation protocols, and the numbers that were published with them."""

from __future__ import annotations

from dataclasses import dataclass

DIVERSITY_PAIRS = 300
MULTIMODALITY_PAIRS = 10
REPLICATIONS = 20
CAPTIONS, SAMPLES = 100, 30
"""Multimodality: so many captions, so many motions of each."""


@dataclass(frozen=True)
class Published:
    """A row of a paper's table; ``None`` where it gives no number."""

    name: str
    fid: float | None = None
    r_precision: tuple[float, ...] = ()
    mm_dist: float | None = None
    diversity: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How a data set is evaluated.

    ``scale`` multiplies embeddings for FID and Diversity, which ``divide_by`` then divides. ``swaps_persons``: persons
    are exchanged at random, before the motion is placed by person 1 and after. ``crops``: motion is cut to whole units
    of 4 frames, a third of it to one unit less, at a random place.
    """

    data: str
    batch_size: int
    scale: float
    divide_by: float
    swaps_persons: bool
    crops: bool
    published: tuple[Published, ...]


PROTOCOLS = {
    "interhuman": Protocol(
        "interhuman",
        batch_size=96,
        scale=6.0,
        divide_by=2.0,
        swaps_persons=True,
        crops=False,
        published=(
            Published("ground truth", 0.273, (0.452, 0.610, 0.701), 3.755, 7.948),
            Published("ComMDM", 7.069, (0.223,)),
            Published("InterGen", 5.918, (0.371,)),
            Published("InterGen, run by InterMoE", 5.149, (0.489,), 3.785),
            Published("in2IN", 5.535, (0.425,)),
            Published("InterMask", 5.154, (0.449,)),
            Published("TIMotion", 5.433, (0.491,), 3.775),
            Published("TIMotion, in InterMoE", 5.157, (0.496,), 3.772),
            Published("InterMoE", 4.677, (0.512,), 3.762),
            Published("HINT", 3.100),
        ),
    ),
    "interx": Protocol(
        "interx",
        batch_size=32,
        scale=1.0,
        divide_by=1.0,
        swaps_persons=False,
        crops=True,
        published=(
            Published("InterGen", 5.207),
            Published("InterGen, run by InterMoE", 0.469),
            Published("InterMask", 0.399),
            Published("TIMotion", 0.385),
            Published("InterMoE", 0.297),
            Published("Interact2Ar", 0.148),
        ),
    ),
    "humanml3d": Protocol(
        "humanml3d", batch_size=32, scale=1.0, divide_by=1.0, swaps_persons=False, crops=True, published=()
    ),
}
