"""Two-person motion as pictures: capsule figures with shadows on a tiled floor, drawn with Pillow.

Figures are drawn at twice their size and shrunk, but only where they are; what does not move (floor, caption) is drawn
once. Capsules are painted far ones first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import NUM_JOINTS
from intermoe.viz.body import LEFT, RIGHT, SKIN, build_body
from intermoe.viz.camera import SIZE_STEP, Array, View, centre_path, frame_motion
from intermoe.viz.colours import INK, PAPER, Colour, mixed

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

OVERSAMPLING = 2
SHADOW_SHRINK = SIZE_STEP
PERSON_COLOURS: tuple[Colour, ...] = ((36, 104, 216), (238, 112, 28), (46, 152, 88), (150, 76, 190))
SKIN_COLOUR: Colour = (246, 214, 186)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
TILES = np.array([[232, 235, 241], [206, 211, 221]], dtype=np.float32)
TILE_METRES = 0.5
_LINES = 4  # of a caption
SHADOW = 0.62
# What rim and highlight add to a capsule's x, y and radius: pixels, and shares of its radius.
RIM = np.array([0.0, 0.0, 1.6])
HIGHLIGHT = np.array([-0.28, -0.28, -0.58])
# Horizontal way of the sunlight per metre that it falls, along x and z.
SUN = np.array([0.28, 0.16])


class Paint(NamedTuple):
    """Colours of one capsule."""

    rim: Colour
    body: Colour
    highlight: Colour


class Scene:
    """A motion ready to be drawn frame by frame.

    Args:
        joints: (P, T, 22, 3) metres, Y up, floor at 0; P from 1 to 4.
        caption: written above the figures, wrapped.
        fps: for the clock in the corner.
        camera: one of ``CAMERAS``: from the ``side``, the ``front`` of the first person, the ``top``, or from the side
            of a pair that the camera goes along with (``follow``).
        size: width and height of a frame in pixels, even.

    Raises:
        ValueError: wrong shape, a value that is not finite, an unknown camera, or a size that is odd or too small.
    """

    def __init__(
        self,
        joints: npt.ArrayLike,
        caption: str = "",
        *,
        fps: float = 30,
        size: tuple[int, int] = (640, 640),
        camera: str = "side",
    ) -> None:
        positions = np.asarray(joints, dtype=np.float64)
        shape, most = positions.shape, len(PERSON_COLOURS)
        if positions.ndim != 4 or shape[2:] != (NUM_JOINTS, 3) or not 1 <= shape[0] <= most or shape[1] == 0:
            raise ValueError(f"joints: expected shape (1..{most}, T >= 1, {NUM_JOINTS}, 3), got {shape}")
        if not np.isfinite(positions).all():
            raise ValueError("joints: expected finite values, got NaN or infinity")
        view = View(camera, size)
        self.fps = fps
        self.size = size
        self._num_frames = shape[1]
        self._font = _font(size[1] // 34)
        lines = _wrap(caption, self._font, int(0.94 * size[0]))
        top = _line_height(self._font) * (len(lines) + 1.75)
        side = 0.03 * size[0]
        viewport = (side, top, size[0] - side, size[1] - 2 * side)
        self._path = centre_path(positions, fps) if view.moves else np.zeros((shape[1], 3))
        if view.moves:
            positions = positions - self._path[:, None]
        self._camera = frame_motion(positions, viewport, camera).scaled(OVERSAMPLING)
        self._body = build_body(positions)
        self._num_persons = shape[0]
        self._paints = [_paint(tinted(person, tone)) for person in range(shape[0]) for tone in self._body.tones]
        self._lines = lines
        self._rays = self._camera.floor_grid(*(edge * OVERSAMPLING for edge in size))
        ground = positions[..., [0, 2]].reshape(-1, 2)
        self._middle = (ground.min(0) + ground.max(0)) / 2
        self._reach = float(np.linalg.norm(ground - self._middle, axis=-1).max() + 1.0)
        self._empty = None if view.moves else self._floor(self._path[0])

    def __len__(self) -> int:
        return self._num_frames

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All frames in order, each (height, width, 3) uint8."""
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame ``index``: (height, width, 3) uint8."""
        from PIL import Image, ImageDraw, ImageFilter

        lit, shaded = self._empty or self._floor(self._path[index])
        ends = self._body.ends[:, index].reshape(-1, 2, 3)
        radii = np.tile(self._body.radii, (self._num_persons, 1))
        bodies, depth = self._capsules(ends, radii)
        altitude = ends[..., 1:2]
        fallen = np.concatenate([ends, np.zeros_like(altitude)], axis=-1)[..., [0, 3, 2]]
        fallen[..., [0, 2]] += altitude * SUN
        shadows, _ = self._capsules(fallen, radii)

        box = self._bounds(np.concatenate([bodies, shadows]))
        width, height = box[2] - box[0], box[3] - box[1]
        corner = np.array([*box[:2], 0]) * OVERSAMPLING
        mask = Image.new("L", (width // SHADOW_SHRINK, height // SHADOW_SHRINK))
        pen = ImageDraw.Draw(mask)
        for shadow in ((shadows - corner) / (OVERSAMPLING * SHADOW_SHRINK)).tolist():
            _draw_capsule(pen, shadow, 255)
        mask = mask.filter(ImageFilter.GaussianBlur(2)).resize((width, height), Image.Resampling.BILINEAR)
        patch = Image.composite(shaded.crop(box), lit.crop(box), mask)
        patch = patch.resize((width * OVERSAMPLING, height * OVERSAMPLING), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(patch)
        tubes = _tubes(bodies - corner).tolist()
        for which in np.argsort(-depth):
            for capsule, colour in zip(tubes[which], self._paints[which], strict=True):
                _draw_capsule(pen, capsule, colour)

        picture = lit.copy()
        picture.paste(patch.reduce(OVERSAMPLING), box[:2])
        clock = f"{index / self.fps:.1f} s"
        ImageDraw.Draw(picture).text(
            (0.97 * self.size[0], 0.98 * self.size[1]), clock, fill=INK, font=self._font, anchor="rs"
        )
        return np.asarray(picture)

    def _capsules(self, ends: Array, radii: Array) -> tuple[Array, Array]:
        """Capsules (N, 2, 3) as x, y and radius in pixels of the large picture, and their depths (N,) in metres."""
        pixels, depth = self._camera.project(ends)
        return np.concatenate([pixels, (self._camera.scale * radii / depth)[..., None]], axis=-1), depth.mean(-1)

    def _bounds(self, capsules: Array) -> tuple[int, int, int, int]:
        """Box in pixels of the frame around ``capsules`` and their blur, in steps of the shadow mask's pixels."""
        limits = np.array(self.size)
        middles, margin = capsules[..., :2] / OVERSAMPLING, capsules[..., 2:] / OVERSAMPLING + 6 * SHADOW_SHRINK
        low = np.clip((middles - margin).min((0, 1)), 0, limits - SHADOW_SHRINK) // SHADOW_SHRINK
        cells = np.ceil(((middles + margin).max((0, 1)) - low * SHADOW_SHRINK) / SHADOW_SHRINK)
        high = np.minimum(low + np.maximum(cells, 1), limits // SHADOW_SHRINK)
        left, top, right, bottom = (int(edge) * SHADOW_SHRINK for edge in (*low, *high))
        return left, top, right, bottom

    def _floor(self, shift: Array) -> tuple[Image.Image, Image.Image]:
        """The empty scene in light and in shadow: tiles that fade into the background, and the caption.

        ``shift`` (3,) is where on the floor the camera has gone.
        """
        from PIL import Image

        width, height = (edge * OVERSAMPLING for edge in self.size)
        first, x, z = self._rays
        along, across = (np.float32(shift[axis]) for axis in (0, 2))
        odd = (np.floor((x + along) / TILE_METRES) + np.floor((z + across) / TILE_METRES)) % 2 > 0
        away = np.hypot(x - np.float32(self._middle[0]), z - np.float32(self._middle[1]))
        solid = np.clip(2 - away / np.float32(self._reach), 0, 1) ** 1.5
        lit = np.tile(np.array(PAPER, dtype=np.uint8), (height, width, 1))
        shaded = lit.copy()
        shade = 1 - (1 - SHADOW) * np.minimum(4 * solid, 1)
        for channel in range(3):
            even_tile, odd_tile = TILES[:, channel] - PAPER[channel]
            tiles = PAPER[channel] + solid * np.where(odd, odd_tile, even_tile)
            lit[first:, :, channel] = tiles
            shaded[first:, :, channel] = tiles * shade
        pictures = Image.fromarray(lit).reduce(OVERSAMPLING), Image.fromarray(shaded).reduce(OVERSAMPLING)
        for picture in pictures:
            self._write_caption(picture)
        return pictures

    def _write_caption(self, picture: Image.Image) -> None:
        from PIL import ImageDraw

        pen = ImageDraw.Draw(picture)
        x, y = 0.03 * self.size[0], 0.4 * _line_height(self._font)
        for line in self._lines:
            pen.text((x, y), line, fill=INK, font=self._font)
            y += _line_height(self._font)
        swatch = round(0.5 * _line_height(self._font))
        y += _line_height(self._font) // 4
        for person, colour in enumerate(PERSON_COLOURS[: self._num_persons], start=1):
            pen.rectangle((x, y, x + swatch, y + swatch), fill=colour)
            label = f"person {person}"
            pen.text((x + 1.6 * swatch, y + swatch / 2), label, fill=INK, font=self._font, anchor="lm")
            x += 3.5 * swatch + self._font.getlength(label)


def _tubes(capsules: Array) -> Array:
    """(N, 2, 3) -> (N, 3, 2, 3): each with a dark rim and a highlight towards the upper left, which make it round."""
    return np.stack([capsules + RIM, capsules, capsules + capsules[..., 2:] * HIGHLIGHT], axis=1)


def _draw_capsule(pen: ImageDraw.ImageDraw, capsule: Sequence[Sequence[float]], fill: Any) -> None:
    """``capsule``: x, y, radius in pixels of both ends."""
    (x1, y1, r1), (x2, y2, r2) = capsule
    pen.ellipse((x1 - r1, y1 - r1, x1 + r1, y1 + r1), fill=fill)
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    if length < 0.5:
        return
    pen.ellipse((x2 - r2, y2 - r2, x2 + r2, y2 + r2), fill=fill)
    across, down = (y1 - y2) / length, (x2 - x1) / length
    pen.polygon(
        (
            (x1 + across * r1, y1 + down * r1),
            (x2 + across * r2, y2 + down * r2),
            (x2 - across * r2, y2 - down * r2),
            (x1 - across * r1, y1 - down * r1),
        ),
        fill=fill,
    )


def tinted(person: int, tone: int) -> Colour:
    """The colour of a tone of person 0, 1, ...: left limbs are lighter and right ones darker than the trunk."""
    colour = PERSON_COLOURS[person % len(PERSON_COLOURS)]
    if tone == SKIN:
        return mixed(SKIN_COLOUR, colour, 0.15)
    if tone == LEFT:
        return mixed(colour, WHITE, 0.22)
    return mixed(colour, BLACK, 0.2) if tone == RIGHT else colour


def _paint(colour: Colour) -> Paint:
    return Paint(mixed(colour, BLACK, 0.45), colour, mixed(colour, WHITE, 0.3))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(max(10, size))


def _line_height(font: Any) -> float:
    return 1.3 * float(font.size)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels; what does not fit into ``_LINES`` becomes an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
        if len(lines) > _LINES:
            break
    kept = lines[:_LINES]
    if len(lines) > _LINES:
        kept[-1] += " …"
    return [_cut(line, font, width) for line in kept]


def _cut(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line[:width]  # no letter is narrower than a pixel
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
