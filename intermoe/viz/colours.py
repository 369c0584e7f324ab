"""Colours that all pictures share, as red, green and blue in [0, 255]."""

from __future__ import annotations

Colour = tuple[int, int, int]

INK: Colour = (46, 50, 60)
PAPER: Colour = (250, 250, 252)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with a ``share`` of ``other``."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def linear(colour: Colour) -> tuple[float, float, float]:
    """Shares of light of a ``colour``, whose numbers are those of sRGB (IEC 61966-2-1)."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (value / 255 for value in colour)
    )
    return red, green, blue
