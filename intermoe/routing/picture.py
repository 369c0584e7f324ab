"""Pictures of a ``RoutingTrace``: one page for a paper or a model card, and heat maps under the moving figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intermoe.files import replacing
from intermoe.routing.trace import RoutingTrace
from intermoe.viz.colours import INK, PAPER, Colour
from intermoe.viz.figures import PERSON_COLOURS, Scene
from intermoe.viz.panel import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PALE: Colour = (226, 229, 236)
_GREY: Colour = (120, 126, 138)
_BAR: Colour = (168, 174, 187)
_INCH = 100
"""Units of a page to an inch, which are pixels of an SVG and half a pixel of a PNG."""
_EXPERT_HEIGHT, _GAP, _TOP = 10, 34, 74
_LETTER = 6
"""Width of a layer's name per letter."""
_MAP_WIDTH, _LOAD_WIDTH, _STEPS_WIDTH = 300, 130, 190


class RoutingPage:
    """A drawn page; ``figure`` is matplotlib's."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, path: str | Path) -> None:
        """Write ``.png`` or ``.svg``, whole or not at all. Raises ``ValueError`` at another suffix."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".svg"):
            raise ValueError(f"path: expected a .png or .svg file, got {path}")
        import matplotlib

        # words stay words in an SVG, and a page of the same numbers is the same file
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "routing"}), replacing(path) as temporary:
            self.figure.savefig(temporary, dpi=2 * _INCH, metadata={"Date": None} if suffix == ".svg" else None)


def draw_routing(trace: RoutingTrace) -> RoutingPage:
    """One row for every layer: heat maps of experts over time for each person, expert load, experts per token.

    A cell is the darker, the larger the share of calls (denoising steps) in which the expert took that frame. Load is
    the share of all tokens that an expert took. The curve shows experts per token from the first call to the last.

    Raises:
        ModuleNotFoundError: matplotlib is absent; says how to install it.
    """
    calls, layers, persons, tokens, experts = trace.chosen.shape
    labels = _labels(trace.layers)
    widths = [*[_MAP_WIDTH] * persons, _LOAD_WIDTH, *([_STEPS_WIDTH] if calls > 1 else [])]
    titles = [
        f"person {person + 1}: experts over time" if persons > 1 else "experts over tokens" for person in range(persons)
    ]
    titles += ["load: share of tokens", "experts per token over the steps"]
    row, side = experts * _EXPERT_HEIGHT, max(64, 28 + _LETTER * max(map(len, labels)))
    width, height = side + sum(widths) + _GAP * len(widths), _TOP + layers * (row + _GAP) + 12
    figure = _figure(width, height)
    _write(figure, 16, 24, _shortened(trace.title, width // 8), 15)
    most = max(1.0, float(np.ceil(trace.experts_per_token.max())))
    for layer, label in enumerate(labels):
        left, top = float(side), float(_TOP + layer * (row + _GAP))
        _write(figure, side - 22, top + row / 2 + 4, label, 11, ha="right")
        for number, (title, across) in enumerate(zip(titles, widths, strict=False)):
            axes = _axes(figure, left, top, across, row)
            if layer == 0:
                _write(figure, left, _TOP - 14, title, 12)
            if number < persons:
                _heat_map(axes, trace.share[layer, number], number)
                _time_axis(axes, trace, tokens)
                axes.set_yticks(range(experts) if number == 0 else [], range(1, experts + 1) if number == 0 else [])
            elif number == persons:
                _load_bars(axes, trace.load[layer])
            else:
                _step_curve(axes, trace.experts_per_token[:, layer], most)
                _ends(axes, (0, calls - 1), ("noise", "motion") if trace.joints is not None else ("first call", "last"))
            left += across + _GAP
    return RoutingPage(figure)


def routing_panel(trace: RoutingTrace, width: int, *, scale: int = 1) -> Panel:
    """Each layer's heat maps of experts over time, the persons beside each other: ``scale * width`` pixels wide."""
    _, layers, persons, _, experts = trace.chosen.shape
    cell = max(2, min(6, 320 // (layers * experts)))
    row = experts * cell + 8
    labels = _labels(trace.layers)
    left = max(58, 14 + _LETTER * max(map(len, labels)))
    map_width = (width - left - 16 * persons) / persons
    starts = [left + person * (map_width + 16) for person in range(persons)]
    figure = _figure(width, 22 + layers * row + layers * row % 2)
    for layer, label in enumerate(labels):
        top = 14 + layer * row
        _write(figure, left - 8, top + experts * cell / 2 + 4, label, 11, ha="right")
        for person, start in enumerate(starts):
            axes = _axes(figure, start, top, map_width, experts * cell)
            _heat_map(axes, trace.share[layer, person], person)
    return Panel(_pixels(figure, scale), [scale * start for start in starts], scale * map_width)


class RoutingScene:
    """Moving figures with each layer's heat maps under them and a line at the present moment; drawn like a ``Scene``.

    Args:
        trace: with ``joints`` of 22 joints.
        size: width and height in pixels of the figures' part, even.

    Raises:
        ValueError: a trace without motion, or as ``Scene``. ModuleNotFoundError: matplotlib is absent.
    """

    def __init__(self, trace: RoutingTrace, *, size: tuple[int, int] = (640, 640)) -> None:
        if trace.joints is None:
            raise ValueError("trace: expected joints to draw, got none")
        self._figures = Scene(trace.joints, trace.title, fps=trace.fps, size=size)
        self._num_frames = trace.joints.shape[1]
        self.fps = trace.fps
        self._panel = routing_panel(trace, size[0])
        self.size = (size[0], size[1] + len(self._panel.image))

    def __len__(self) -> int:
        return self._num_frames

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All frames in order, each (height, width, 3) uint8."""
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame ``index``: (height, width, 3) uint8."""
        panel = self._panel.image.copy()
        for moment in self._panel.moments((index + 0.5) / len(self)):
            panel[8:-4, round(moment) - 1 : round(moment) + 1] = INK
        return np.concatenate([self._figures.frame(index), panel])


def _figure(width: int, height: int) -> Figure:
    """An empty page of so many units."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is needed for pictures of routing: pip install 'intermoe[viz]'"
        ) from error
    return Figure((width / _INCH, height / _INCH), dpi=_INCH, facecolor=_hex(PAPER))


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Axes without a frame at a place in units, y down."""
    across, down = figure.get_size_inches() * _INCH
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set(facecolor=_hex(_PALE), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2, labelsize=9 * 72 / _INCH, labelcolor=_hex(_GREY))
    return axes


def _write(figure: Figure, x: float, y: float, text: str, size: float, ha: str = "left") -> None:
    """A line of text whose baseline is at y; no dollars are taken for mathematics."""
    across, down = figure.get_size_inches() * _INCH
    figure.text(x / across, 1 - y / down, text, size=size * 72 / _INCH, ha=ha, color=_hex(INK), parse_math=False)


def _pixels(figure: Figure, scale: int = 1) -> npt.NDArray[np.uint8]:
    """The page as (height, width, 3) uint8, ``scale`` pixels a unit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(scale * _INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _heat_map(axes: Any, share: npt.NDArray[np.float64], person: int) -> None:
    """Share (T, E) as T columns and E rows."""
    from matplotlib.colors import LinearSegmentedColormap

    colour = PERSON_COLOURS[person % len(PERSON_COLOURS)]
    shades = LinearSegmentedColormap.from_list("share", [_hex(_PALE), _hex(colour)])
    axes.imshow(share.T, shades, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.hlines(np.arange(1, share.shape[1]) - 0.5, -0.5, len(share) - 0.5, color=_hex(PAPER), linewidth=0.4)


def _ends(axes: Any, places: tuple[float, float], words: tuple[str, str]) -> None:
    """What the two ends of an axis are, under the axes."""
    axes.set_xticks(places, words)
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_ha(side)


def _time_axis(axes: Any, trace: RoutingTrace, tokens: int) -> None:
    if trace.joints is None:
        _ends(axes, (-0.5, tokens - 0.5), ("1", f"{tokens} tokens"))
        return
    seconds = trace.joints.shape[1] / trace.fps
    step = next((s for s in (0.5, 1, 2, 5) if seconds / s <= 8), 10)
    ticks = np.arange(int(seconds / step) + 1) * step
    axes.set_xticks(ticks / seconds * tokens - 0.5, [f"{tick:g} s" for tick in ticks])


def _load_bars(axes: Any, load: npt.NDArray[np.float64]) -> None:
    """Bars from 0 to a whole; the mean of a layer is its capacity divided by the number of experts."""
    bars = axes.barh(np.arange(len(load)), load, height=0.9, color=_hex(_BAR))
    axes.set(xlim=(0, 1), ylim=(len(load) - 0.5, -0.5))
    for bar, share in zip(bars, load, strict=True):
        place = (0.98, bar.get_y() + 0.5 * bar.get_height())
        axes.text(
            *place, f"{100 * share:.0f} %", ha="right", va="center_baseline", size=8 * 72 / _INCH, color=_hex(INK)
        )


def _step_curve(axes: Any, values: npt.NDArray[np.float64], most: float) -> None:
    """A layer's curve (N,) from 0 to ``most``, on one scale for all."""
    axes.plot(values, color=_hex(INK), linewidth=1.1)
    axes.set(xlim=(0, len(values) - 1), ylim=(0, most))
    axes.yaxis.tick_right()
    axes.set_yticks([0, most], ["0", f"{most:g}"])


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _labels(layers: Sequence[str]) -> list[str]:
    """Names of layers without the parts that all of them share: ``blocks.0.ff.moe`` among its like is ``blocks.0``."""
    parts = [name.split(".") for name in layers]
    if len(parts) < 2:
        return [_shortened(name, 24) for name in layers]
    before, after = _shared(parts), _shared([part[::-1] for part in parts])
    labels = []
    for part in parts:
        start = before - (0 < before < len(part) and part[before].isdigit())  # a number says little alone
        labels.append(_shortened(".".join(part[start : max(len(part) - after, before + 1)]), 24))
    return labels


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many leading parts are the same in all, the last of the shortest left out."""
    columns = list(zip(*parts, strict=False))[:-1]
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(1, length - 1)]}…"
