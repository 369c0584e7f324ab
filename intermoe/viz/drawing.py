"""Rectangles, lines and text, as PNG through Pillow or as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from intermoe.files import replacing

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]

INK: Colour = (46, 50, 60)
PAPER: Colour = (250, 250, 252)
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with a ``share`` of ``other``."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue


class _Rect(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    colour: Colour


class _Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    colour: Colour
    width: float


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    size: float
    anchor: str
    colour: Colour


class Drawing:
    """A picture of ``width`` x ``height`` units, which are pixels in SVG; x to the right, y down.

    What is drawn later covers what was drawn before.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._items: list[_Rect | _Line | _Text] = []

    def rect(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """A filled rectangle from its upper left corner."""
        self._items.append(_Rect(x, y, width, height, colour))

    def line(self, points: Sequence[tuple[float, float]], colour: Colour = INK, width: float = 1.0) -> None:
        """Straight strokes from point to point."""
        self._items.append(_Line(tuple(points), colour, width))

    def text(
        self, x: float, y: float, text: str, *, size: float = 12, anchor: str = "start", colour: Colour = INK
    ) -> None:
        """A line of text whose baseline is at y and whose ``anchor`` (start, middle or end) is at x."""
        if anchor not in _ANCHORS:
            raise ValueError(f"anchor: must be one of {tuple(_ANCHORS)}, got {anchor!r}")
        self._items.append(_Text(x, y, text, size, anchor, colour))

    def image(self, scale: int = 2) -> Image.Image:
        """The picture in ``scale`` pixels per unit."""
        from PIL import Image, ImageDraw, ImageFont

        picture = Image.new("RGB", (self.width * scale, self.height * scale), PAPER)
        pen = ImageDraw.Draw(picture)
        for item in self._items:
            if isinstance(item, _Rect):
                left, top = round(item.x * scale), round(item.y * scale)
                right, bottom = round((item.x + item.width) * scale), round((item.y + item.height) * scale)
                if right > left and bottom > top:
                    pen.rectangle((left, top, right - 1, bottom - 1), fill=item.colour)
            elif isinstance(item, _Line):
                points = [(x * scale, y * scale) for x, y in item.points]
                pen.line(points, fill=item.colour, width=max(1, round(item.width * scale)), joint="curve")
            else:
                font = ImageFont.load_default(item.size * scale)
                place = (item.x * scale, item.y * scale)
                pen.text(place, item.text, fill=item.colour, font=font, anchor=_ANCHORS[item.anchor])
        return picture

    def svg(self) -> str:
        """The picture as an SVG document."""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif">',
            f'<rect width="{self.width}" height="{self.height}" fill="{_hex(PAPER)}"/>',
        ]
        for item in self._items:
            if isinstance(item, _Rect):
                lines.append(
                    f'<rect x="{item.x:.5g}" y="{item.y:.5g}" width="{item.width:.5g}" height="{item.height:.5g}" '
                    f'fill="{_hex(item.colour)}"/>'
                )
            elif isinstance(item, _Line):
                points = " ".join(f"{x:.5g},{y:.5g}" for x, y in item.points)
                lines.append(
                    f'<polyline points="{points}" fill="none" stroke="{_hex(item.colour)}" '
                    f'stroke-width="{item.width:.5g}"/>'
                )
            else:
                lines.append(
                    f'<text x="{item.x:.5g}" y="{item.y:.5g}" font-size="{item.size:.5g}" '
                    f'text-anchor="{item.anchor}" fill="{_hex(item.colour)}">{escape(item.text)}</text>'
                )
        return "\n".join([*lines, "</svg>\n"])

    def save(self, path: str | Path) -> None:
        """Write ``.png`` or ``.svg``, whole or not at all. Raises ``ValueError`` at another suffix."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".svg"):
            raise ValueError(f"path: expected a .png or .svg file, got {path}")
        with replacing(path) as temporary:
            if suffix == ".svg":
                temporary.write_text(self.svg(), encoding="utf-8")
            else:
                self.image().save(temporary, format="PNG", optimize=True)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
