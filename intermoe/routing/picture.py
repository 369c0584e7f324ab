"""Pictures of a ``RoutingTrace``: one page for a paper or a model card, and heat maps under the moving figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from intermoe.routing.trace import RoutingTrace
from intermoe.viz.drawing import INK, PAPER, Colour, Drawing, mixed
from intermoe.viz.figures import PERSON_COLOURS, Scene

_PALE: Colour = (226, 229, 236)
_GREY: Colour = (120, 126, 138)
_BAR: Colour = (168, 174, 187)
_EXPERT_HEIGHT = 10
_GAP = 34
_TOP, _SIDE = 74, 64
_LETTER = 6
"""Width of a layer's name per letter."""
_MAP_WIDTH, _LOAD_WIDTH, _STEPS_WIDTH = 300, 130, 190


def draw_routing(trace: RoutingTrace) -> Drawing:
    """One row for every layer: heat maps of experts over time for each person, expert load, experts per token.

    A cell is the darker, the larger the share of calls (denoising steps) in which the expert took that frame. Load is
    the share of all tokens that an expert took. The curve shows experts per token from the first call to the last.
    """
    _, layers, persons, tokens, experts = trace.chosen.shape
    height = experts * _EXPERT_HEIGHT
    several = len(trace.chosen) > 1
    labels = _labels(trace.layers)
    side = max(_SIDE, 28 + _LETTER * max(map(len, labels)))
    width = side + persons * (_MAP_WIDTH + _GAP) + _LOAD_WIDTH + _GAP + (several * (_STEPS_WIDTH + _GAP))
    drawing = Drawing(width, _TOP + layers * (height + _GAP) + 12)
    drawing.text(16, 24, _shortened(trace.title, width // 8), size=15)
    left = side
    for person in range(persons):
        label = f"person {person + 1}: experts over time" if persons > 1 else "experts over tokens"
        drawing.text(left, _TOP - 14, label, size=12)
        for layer in range(layers):
            top = _TOP + layer * (height + _GAP)
            _heat_map(drawing, trace.share[layer, person], left, top, _MAP_WIDTH, height, _colour(person))
            _time_axis(drawing, trace, left, top + height, tokens)
        left += _MAP_WIDTH + _GAP
    for layer, label in enumerate(labels):
        top = _TOP + layer * (height + _GAP)
        drawing.text(side - 22, top + height / 2 + 4, label, size=11, anchor="end")
        for expert in range(experts):
            baseline = top + (expert + 0.85) * _EXPERT_HEIGHT
            drawing.text(side - 5, baseline, str(expert + 1), size=8, anchor="end", colour=_GREY)
        _load_bars(drawing, trace.load[layer], left, top)
    drawing.text(left, _TOP - 14, "load: share of tokens", size=12)
    if several:
        left += _LOAD_WIDTH + _GAP
        drawing.text(left, _TOP - 14, "experts per token over the steps", size=12)
        ends = ("noise", "motion") if trace.joints is not None else ("first call", "last")
        _step_curves(drawing, trace.experts_per_token, left, height, ends)
    return drawing


class RoutingScene:
    """Moving figures with each layer's heat maps under them and a line at the present moment; drawn like a ``Scene``.

    Args:
        trace: with ``joints`` of 22 joints. size: width and height in pixels of the figures' part, even.

    Raises:
        ValueError: a trace without motion, or as ``Scene``.
    """

    def __init__(self, trace: RoutingTrace, *, size: tuple[int, int] = (640, 640)) -> None:
        if trace.joints is None:
            raise ValueError("trace: has no joints to draw")
        self._figures = Scene(trace.joints, trace.title, fps=trace.fps, size=size)
        self._num_frames = trace.joints.shape[1]
        self.fps = trace.fps
        _, layers, persons, _, experts = trace.chosen.shape
        cell = max(2, min(6, 320 // (layers * experts)))
        row = experts * cell + 8
        height = 22 + layers * row + layers * row % 2
        self.size = (size[0], size[1] + height)
        labels = _labels(trace.layers)
        self._left = max(58, 14 + _LETTER * max(map(len, labels)))
        self._map_width = (size[0] - self._left - 16 * persons) / persons
        self._starts = [self._left + person * (self._map_width + 16) for person in range(persons)]
        drawing = Drawing(size[0], height)
        for layer, label in enumerate(labels):
            top = 14 + layer * row
            drawing.text(self._left - 8, top + experts * cell / 2 + 4, label, size=11, anchor="end")
            for person, start in enumerate(self._starts):
                share = trace.share[layer, person]
                _heat_map(drawing, share, start, top, self._map_width, experts * cell, _colour(person))
        self._panel = np.asarray(drawing.image(scale=1))

    def __len__(self) -> int:
        return self._num_frames

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All frames in order, each (height, width, 3) uint8."""
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame ``index``: (height, width, 3) uint8."""
        panel = self._panel.copy()
        for start in self._starts:
            now = round(start + (index + 0.5) / len(self) * self._map_width)
            panel[8:-4, now - 1 : now + 1] = INK
        return np.concatenate([self._figures.frame(index), panel])


def _heat_map(
    drawing: Drawing,
    share: npt.NDArray[np.float64],
    left: float,
    top: float,
    width: float,
    height: float,
    colour: Colour,
) -> None:
    """Share (T, E) as T columns and E rows; neighbouring cells of one shade are drawn as one."""
    tokens, experts = share.shape
    drawing.rect(left, top, width, height, _PALE)
    levels = np.rint(share * 32).astype(int)
    for expert in range(experts):
        edges = [0, *(np.flatnonzero(np.diff(levels[:, expert])) + 1).tolist(), tokens]
        for start, stop in pairwise(edges):
            if levels[start, expert]:
                shade = mixed(_PALE, colour, levels[start, expert] / 32)
                x, y = left + start / tokens * width, top + expert / experts * height
                drawing.rect(x, y, (stop - start) / tokens * width, height / experts, shade)
    for expert in range(1, experts):
        y = top + expert / experts * height
        drawing.line([(left, y), (left + width, y)], PAPER, 0.5)


def _time_axis(drawing: Drawing, trace: RoutingTrace, left: float, bottom: float, tokens: int) -> None:
    if trace.joints is None:
        drawing.text(left, bottom + 12, "1", size=9, colour=_GREY)
        drawing.text(left + _MAP_WIDTH, bottom + 12, f"{tokens} tokens", size=9, anchor="end", colour=_GREY)
        return
    seconds = trace.joints.shape[1] / trace.fps
    step = next((s for s in (0.5, 1, 2, 5) if seconds / s <= 8), 10)
    for number in range(int(seconds / step) + 1):
        x = left + number * step / seconds * _MAP_WIDTH
        drawing.line([(x, bottom), (x, bottom + 3)], _GREY)
        drawing.text(x, bottom + 12, f"{number * step:g} s", size=9, anchor="middle", colour=_GREY)


def _load_bars(drawing: Drawing, load: npt.NDArray[np.float64], left: float, top: float) -> None:
    """Bars from 0 to a whole; the mean of a layer is its capacity divided by the number of experts."""
    for expert, share in enumerate(load):
        y = top + expert * _EXPERT_HEIGHT
        drawing.rect(left, y, _LOAD_WIDTH, _EXPERT_HEIGHT - 1, _PALE)
        drawing.rect(left, y, float(share) * _LOAD_WIDTH, _EXPERT_HEIGHT - 1, _BAR)
        label = f"{100 * share:.0f} %"
        drawing.text(left + _LOAD_WIDTH - 3, y + 0.85 * _EXPERT_HEIGHT, label, size=8, anchor="end")


def _step_curves(
    drawing: Drawing, values: npt.NDArray[np.float64], left: float, height: float, ends: tuple[str, str]
) -> None:
    """A curve (N, L) of each layer from 0 to the largest value of all, on one scale."""
    most = max(1.0, float(np.ceil(values.max())))
    for layer in range(values.shape[1]):
        top = _TOP + layer * (height + _GAP)
        drawing.rect(left, top, _STEPS_WIDTH, height, _PALE)
        x = left + np.linspace(0, _STEPS_WIDTH, len(values))
        y = top + height * (1 - values[:, layer] / most)
        drawing.line(list(zip(x.tolist(), y.tolist(), strict=True)), INK, 1.5)
        for value, line in ((most, top + 8), (0.0, top + height)):
            drawing.text(left + _STEPS_WIDTH + 4, line, f"{value:g}", size=9, colour=_GREY)
        drawing.text(left, top + height + 12, ends[0], size=9, colour=_GREY)
        drawing.text(left + _STEPS_WIDTH, top + height + 12, ends[1], size=9, anchor="end", colour=_GREY)


def _colour(person: int) -> Colour:
    return PERSON_COLOURS[person % len(PERSON_COLOURS)]


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
