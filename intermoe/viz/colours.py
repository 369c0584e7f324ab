"""Colours that all pictures share, as red, green and blue in [0, 255]."""

from __future__ import annotations

Colour = tuple[int, int, int]

INK: Colour = (46, 50, 60)
PAPER: Colour = (250, 250, 252)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with a ``share`` of ``other``."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue
