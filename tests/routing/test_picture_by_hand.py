"""Where the moments of a picture of routing are, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from intermoe.routing.trace import RoutingTrace
from intermoe.viz.colours import INK

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg

from intermoe.routing.picture import RoutingScene, draw_routing, routing_panel


@pytest.fixture
def trace() -> RoutingTrace:
    """Two seconds of two persons, four frames a token."""
    chosen = np.ones((2, 1, 2, 15, 3), dtype=np.bool_)
    return RoutingTrace(chosen, np.array([500, 0]), ("first",), np.zeros((2, 60, 22, 3), dtype=np.float32), "bow")


def test_seconds_are_written_where_they_are(trace: RoutingTrace) -> None:
    """From the left edge of the first cell, at -0.5, to the right edge of the last."""
    axes = draw_routing(trace).figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 s", "0.5 s", "1 s", "1.5 s", "2 s"]
    np.testing.assert_allclose(axes.get_xticks(), [-0.5, 3.25, 7, 10.75, 14.5])


def test_the_line_is_in_the_middle_of_what_a_frame_lasts(trace: RoutingTrace) -> None:
    pytest.importorskip("PIL.Image")
    scene, panel = RoutingScene(trace, size=(320, 200)), routing_panel(trace, 320)
    width = panel.moments(1.0)[0] - panel.moments(0.0)[0]
    for index in (0, 30, 59):
        seen = np.flatnonzero((scene.frame(index)[210:-6] == INK).all(axis=(0, 2)))
        wanted = [round(start + width * (index + 0.5) / 60) for start in panel.moments(0.0)]
        assert seen.tolist() == sorted(column for place in wanted for column in (place - 1, place))


def test_everything_has_room_however_long_names_of_layers_are(trace: RoutingTrace) -> None:
    """Texts lie within the picture, maps and curves right of the names and beside each other."""
    for name in ("first", "one with a longer name"):
        named = dataclasses.replace(trace, layers=(name,))
        figure = draw_routing(named).figure
        width, height = figure.get_size_inches() * figure.dpi
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
        assert {name, "person 1: experts over time", "person 2: experts over time"} <= boxes.keys()
        assert {"load: share of tokens", "experts per token over the steps"} <= boxes.keys()
        assert all(min(box.x0, box.y0, width - box.x1, height - box.y1) > 0 for box in boxes.values())
        places = [axes.get_position().extents * (width, height, width, height) for axes in figure.axes]
        assert len(places) == 4
        assert boxes[name].x1 < places[0][0] - 10
        for left, right in zip(places, [*places[1:], (width,)], strict=True):
            assert left[2] < right[0]
        panel = routing_panel(named, 640)
        paper = panel.image[0, 0]
        assert (panel.image[:, 0] == paper).all()
        written = panel.image[:, : int(panel.moments(0.0)[0]) - 2]
        assert 60 < panel.moments(0.0)[0] + 3 > 6 * len(name)
        assert (written[:, -4:] == paper).all()
        assert (written != paper).any()
