"""The published evaluation protocols, and the numbers that were published with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

DIVERSITY_PAIRS = 300
MULTIMODALITY_PAIRS = 10
REPLICATIONS = 20
CAPTIONS, SAMPLES = 100, 30
"""Multimodality: so many captions, so many motions of each."""


MARKS = {"published": "*", "rerun": "†", "retrained": "‡"}
SOURCES = (
    "* as published, with the published evaluator on the test split",
    "† released weights, or the data, evaluated again by others with the published evaluator",
    "‡ trained anew by the authors of the data set; neither code nor weights were released",
)
"""Whose numbers a row has, by its mark."""


@dataclass(frozen=True)
class Published:
    """A row of a paper's table, or of others who ran it again (``source``, a key of ``MARKS``); ``None``: no number."""

    name: str
    fid: float | None = None
    r_precision: tuple[float | None, ...] = ()
    mm_dist: float | None = None
    diversity: float | None = None
    multimodality: float | None = None
    source: str = "published"

    @property
    def mark(self) -> str:
        """What stands behind the name."""
        return MARKS[self.source]

    def numbers(self) -> dict[str, float | None]:
        """The row by the names of the metrics."""
        ranks = {f"r_precision_{k}": value for k, value in enumerate(self.r_precision, start=1)}
        names = ("fid", "mm_dist", "diversity", "multimodality")
        return {name: getattr(self, name) for name in names} | ranks


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


def _published(data: str) -> tuple[Published, ...]:
    content = files("intermoe.systems").joinpath("published.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(content)[data]
    return tuple(Published(**{**row, "r_precision": tuple(row.get("r_precision", ()))}) for row in rows)


PROTOCOLS = {
    "interhuman": Protocol(
        "interhuman",
        batch_size=96,
        scale=6.0,
        divide_by=2.0,
        swaps_persons=True,
        crops=False,
        published=_published("interhuman"),
    ),
    **{
        name: Protocol(
            name,
            batch_size=32,
            scale=1.0,
            divide_by=1.0,
            swaps_persons=False,
            crops=True,
            published=_published(name),
        )
        for name in ("interx", "humanml3d")
    },
}
