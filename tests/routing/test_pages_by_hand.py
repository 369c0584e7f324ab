"""Every number and word of a page of routing, and of a panel, by hand."""

from __future__ import annotations

import dataclasses
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from intermoe.routing import picture
from intermoe.routing.picture import RoutingScene, draw_routing, routing_panel
from intermoe.routing.trace import RoutingTrace
from intermoe.viz.colours import INK, PAPER
from intermoe.viz.panel import Panel

PERSONS = ((36, 104, 216), (238, 112, 28))


def rgb(colour: Any) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    """Four calls, two layers, two persons, five tokens, three experts; five frames a second for four seconds."""
    chosen = np.zeros((4, 2, 2, 5, 3), dtype=np.bool_)
    chosen[:, 0, 0, :, 1] = True  # layer 1, person 1: expert 2 always
    chosen[0, 0, 1, 3, 0] = True  # person 2: expert 1 takes a token once
    chosen[:3, 1, 1, 2:4, 2] = True  # layer 2, person 2: expert 3 takes two tokens in three of four calls
    chosen[0, 1] = True  # and all in the first call
    return RoutingTrace(chosen, np.arange(4), ("up", "down"), np.zeros((2, 20, 22, 3), np.float32), "they bow", fps=5)


@pytest.fixture(scope="module")
def figure(trace: RoutingTrace) -> Any:
    return draw_routing(trace).figure


def test_rows_of_a_page_are_layers_and_its_columns_what_is_told_of_them(figure: Any) -> None:
    """In units of a hundredth of an inch: names are 64 wide, maps 300, loads 130, curves 190, 34 between all."""
    width, height = 64 + 2 * 300 + 130 + 190 + 4 * 34, 74 + 2 * (30 + 34) + 12
    assert figure.dpi == 100
    np.testing.assert_allclose(figure.get_size_inches() * 100, (width, height))
    assert rgb(figure.get_facecolor()) == PAPER
    places = [axes.get_position().extents * (width, height, width, height) for axes in figure.axes]
    wanted = [
        (left, height - top - 30, left + across, height - top)
        for top in (74, 74 + 64)
        for left, across in ((64, 300), (398, 300), (732, 130), (896, 190))
    ]
    np.testing.assert_allclose(places, wanted)
    for axes in figure.axes:
        assert rgb(axes.get_facecolor()) == (226, 229, 236)
        assert not any(spine.get_visible() for spine in axes.spines.values())
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            assert label.get_size() == pytest.approx(6.48)
            assert rgb(label.get_color()) == (120, 126, 138)


def test_words_of_a_page(figure: Any) -> None:
    """The title at 15 units, heads of columns at 12, layers beside the middle of their row at 11."""
    width, height = figure.get_size_inches() * 100
    told = [
        (
            text.get_text(), round(text.get_position()[0] * width, 6), round(height * (1 - text.get_position()[1]), 6),
            round(text.get_size() / 0.72, 6), text.get_ha(),
        )
        for text in figure.texts
    ]  # fmt: skip
    assert told == [
        ("they bow", 16, 24, 15, "left"),
        ("up", 42, 74 + 15 + 4, 11, "right"),
        ("person 1: experts over time", 64, 60, 12, "left"),
        ("person 2: experts over time", 398, 60, 12, "left"),
        ("load: share of tokens", 732, 60, 12, "left"),
        ("experts per token over the steps", 896, 60, 12, "left"),
        ("down", 42, 138 + 15 + 4, 11, "right"),
    ]
    assert {rgb(text.get_color()) for text in figure.texts} == {INK}


def test_maps_are_the_darker_the_more_often_an_expert_takes_a_token(figure: Any, trace: RoutingTrace) -> None:
    for layer in range(2):
        for person in range(2):
            axes = figure.axes[4 * layer + person]
            (image,) = axes.images
            np.testing.assert_array_equal(image.get_array(), trace.chosen.mean(0)[layer, person].T)
            assert (image.norm.vmin, image.norm.vmax, image.get_interpolation()) == (0, 1, "nearest")
            assert axes.get_aspect() == "auto"
            assert rgb(image.cmap(0.0)[:3]) == (226, 229, 236)
            assert rgb(image.cmap(1.0)[:3]) == PERSONS[person]
            (lines,) = axes.collections  # between the experts, over all tokens
            assert [path.vertices.tolist() for path in lines.get_paths()] == [
                [[-0.5, row], [4.5, row]] for row in (0.5, 1.5)
            ]
            assert [label.get_text() for label in axes.get_yticklabels()] == (["1", "2", "3"] if person == 0 else [])
            assert axes.get_yticks().tolist() == ([0, 1, 2] if person == 0 else [])
            assert [label.get_text() for label in axes.get_xticklabels()][::4] == ["0 s", "2 s", "4 s"]


def test_bars_are_the_share_of_all_tokens_that_an_expert_takes(figure: Any) -> None:
    """Of 40 tokens of a layer: expert 2 takes 20 of the first; of the second each takes 10, expert 3 four more."""
    for layer, load in enumerate(([1 / 40, 20 / 40, 0], [10 / 40, 10 / 40, 14 / 40])):
        axes = figure.axes[4 * layer + 2]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(load)
        assert [bar.get_y() + bar.get_height() / 2 for bar in axes.patches] == pytest.approx([0, 1, 2])
        assert {round(bar.get_height(), 6) for bar in axes.patches} == {0.9}
        assert {rgb(bar.get_facecolor()) for bar in axes.patches} == {(168, 174, 187)}
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (2.5, -0.5))  # the first expert above
        words = [f"{100 * share:.0f} %" for share in load]
        assert [text.get_text() for text in axes.texts] == words
        for row, text in enumerate(axes.texts):
            assert text.get_position() == pytest.approx((0.98, row))
            assert (text.get_ha(), text.get_size()) == ("right", pytest.approx(5.76))


def test_curves_run_from_the_first_call_to_the_last_on_one_scale(figure: Any) -> None:
    for layer, values in enumerate(([0.6, 0.5, 0.5, 0.5], [3, 0.2, 0.2, 0])):
        axes = figure.axes[4 * layer + 3]
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_ydata(), values)
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 3), (0, 3))
        assert rgb(line.get_color()) == INK
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3"]
        assert [(label.get_text(), label.get_ha()) for label in axes.get_xticklabels()] == [
            ("noise", "left"), ("motion", "right"),
        ]  # fmt: skip
        assert axes.get_xticks().tolist() == [0, 3]


def test_a_page_of_no_motion_counts_tokens_and_calls(trace: RoutingTrace) -> None:
    few = dataclasses.replace(trace, chosen=trace.chosen[1:, :, :1], timesteps=np.zeros(3, int), joints=None, title="")
    page = draw_routing(few).figure
    axes = page.axes
    assert len(axes) == 6
    first = [(label.get_text(), label.get_ha()) for label in axes[0].get_xticklabels()]
    assert first == [("1", "left"), ("5 tokens", "right")]
    assert axes[0].get_xticks().tolist() == [-0.5, 4.5]
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["first call", "last"]
    assert axes[2].get_ylim() == (0, 1)  # less than one expert a token on average
    heads = ["experts over tokens", "load: share of tokens", "experts per token over the steps"]
    assert [text.get_text() for text in page.texts] == ["", "up", *heads, "down"]
    once = dataclasses.replace(few, chosen=few.chosen[:1], timesteps=np.zeros(1, int))
    assert len(draw_routing(once).figure.axes) == 4  # of one call there is no curve


@pytest.mark.parametrize(
    ("seconds", "ticks"),
    [(4, "0 0.5 1 1.5 2 2.5 3 3.5 4"), (4.5, "0 1 2 3 4"), (8, "0 1 2 3 4 5 6 7 8"), (9, "0 2 4 6 8"),
     (17, "0 5 10 15"), (40, "0 5 10 15 20 25 30 35 40"), (41, "0 10 20 30 40"), (95, "0 10 20 30 40 50 60 70 80 90")],
    ids=count(),
)  # fmt: skip
def test_seconds_are_told_at_most_nine_times(trace: RoutingTrace, seconds: float, ticks: str) -> None:
    """From half a second to ten between them; the first token begins at -0.5, five end at 4.5."""
    joints = np.zeros((2, int(10 * seconds), 22, 3), np.float32)
    axes = Figure().add_subplot()
    picture._time_axis(axes, dataclasses.replace(trace, joints=joints, fps=10), 5)
    told = ticks.split()
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{tick} s" for tick in told]
    np.testing.assert_allclose(axes.get_xticks(), [float(tick) / seconds * 5 - 0.5 for tick in told])


def drawn(monkeypatch: pytest.MonkeyPatch, trace: RoutingTrace, *given: Any, **how: Any) -> tuple[Panel, Any]:
    """A panel, and the figure that it is a picture of."""
    figures: list[Any] = []
    pixels = picture._pixels
    monkeypatch.setattr(picture, "_pixels", lambda figure, scale: (figures.append(figure), pixels(figure, scale))[1])
    return routing_panel(trace, *given, **how), figures[0]


def test_a_panel_has_a_row_for_each_layer_and_a_map_for_each_person(
    trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names take 58, 16 are left right of each map; an expert is 6 high, 8 are between layers, 14 above and 8 below."""
    panel, figure = drawn(monkeypatch, trace, 430)
    height = 14 + 2 * (18 + 8) + 8
    assert panel.image.shape == (height, 430, 3)
    assert panel.image.dtype == np.uint8
    across = (430 - 58 - 32) / 2
    assert (panel.starts, panel.width) == ([58, 58 + across + 16], across)
    places = [axes.get_position().extents * (430, height, 430, height) for axes in figure.axes]
    np.testing.assert_allclose(
        places, [(left, height - top - 18, left + across, height - top) for top in (14, 40) for left in panel.starts]
    )
    for number, axes in enumerate(figure.axes):
        layer, person = divmod(number, 2)
        np.testing.assert_array_equal(axes.images[0].get_array(), trace.chosen.mean(0)[layer, person].T)
        assert rgb(axes.images[0].cmap(1.0)[:3]) == PERSONS[person]
    told = [
        (text.get_text(), *np.round(text.get_position() * np.array([430, height]), 6), text.get_ha())
        for text in figure.texts
    ]
    assert told == [("up", 50, height - 14 - 13, "right"), ("down", 50, height - 40 - 13, "right")]
    # what person 1 does in the first layer is blue in the second of three rows, of all its tokens
    assert (np.abs(panel.image[14 + 9, 60:226].astype(int) - PERSONS[0]) < 3).all()
    assert (panel.image[0, 0] == PAPER).all()
    twice = routing_panel(trace, 430, scale=2)
    assert (twice.starts, twice.width) == ([116, 2 * panel.starts[1]], 2 * across)


@pytest.mark.parametrize(
    ("layers", "experts", "cell"), [(1, 3, 6), (5, 10, 6), (2, 40, 4), (3, 21, 5), (5, 32, 2), (1, 300, 2)]
)
def test_a_panel_of_much_is_as_low_as_can_be_read(
    layers: int, experts: int, cell: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 320 for all rows, an expert from 2 to 6 high; the height is even."""
    size = lambda figure, _: np.zeros(np.rint(figure.get_size_inches() * 100).astype(int))  # noqa: E731
    monkeypatch.setattr(picture, "_pixels", size)
    monkeypatch.setattr(picture, "_heat_map", lambda *_: None)
    chosen = np.ones((1, layers, 1, 2, experts), dtype=np.bool_)
    panel = routing_panel(RoutingTrace(chosen, np.zeros(1, int), tuple(map(str, range(layers)))), 200)
    row = experts * cell + 8
    assert panel.image.shape == (200, 22 + layers * row + (layers * row) % 2)


def test_a_scene_of_routing_hands_on_what_a_trace_says(trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of two pixels for each person from the first row of maps to the last, in the middle of each frame."""
    made: list[Any] = []

    def scene(*given: Any, **how: Any) -> Any:
        made.append((given, how))
        return SimpleNamespace(frame=lambda index: np.full((100, 200, 3), index, np.uint8))

    monkeypatch.setattr(picture, "Scene", scene)
    panel = Panel(np.full((30, 200, 3), 250, np.uint8), [20.0, 120.0], 60.0)
    asked: list[Any] = []
    monkeypatch.setattr(picture, "routing_panel", lambda *given: (asked.append(given), panel)[1])
    shown = RoutingScene(trace, size=(200, 100))
    ((joints, title), how) = made[0]
    assert joints is trace.joints
    assert (title, how) == ("they bow", {"fps": 5, "size": (200, 100)})
    assert asked == [(trace, 200)]
    assert (len(shown), shown.fps, shown.size) == (20, 5, (200, 130))
    frames = list(shown.frames())
    for index in (0, 7, 19):
        frame = frames[index]
        assert frame.shape == (130, 200, 3)
        assert (frame[:100] == index).all()
        places = np.argwhere((frame[100:] == INK).all(-1))
        columns = [round(start + 60 * (index + 0.5) / 20) for start in (20, 120)]
        assert sorted(set(places[:, 1])) == [column for middle in columns for column in (middle - 1, middle)]
        assert (places[:, 0].min(), places[:, 0].max(), len(places)) == (8, 25, 4 * 18)
    assert (panel.image == 250).all()
    assert RoutingScene(trace).size == (640, 670)


def test_titles_and_names_are_cut_to_their_length() -> None:
    assert [picture._shortened("abcdef", length) for length in (7, 6, 5, 2, 1, 0)] == [
        "abcdef", "abcdef", "abcd…", "a…", "a…", "a…",
    ]  # fmt: skip
    assert picture._labels(["a" * 24]) == ["a" * 24]
    assert picture._labels(["x." + "a" * 25, "x." + "b" * 3]) == ["a" * 23 + "…", "bbb"]
    assert picture._labels(["m.0.up.moe", "m.0.down.moe"]) == ["up", "down"]


def test_a_page_is_saved_by_its_suffix(figure: Any, tmp_path: Path) -> None:
    """In whatever case; a PNG has two pixels a unit, the words of an SVG stay words and it tells no date."""
    image = pytest.importorskip("PIL.Image")
    page = picture.RoutingPage(figure)
    for name in ("a.PNG", "b.svg"):
        page.save(tmp_path / name)
    with image.open(tmp_path / "a.PNG") as drawn:
        assert drawn.size == tuple(np.rint(200 * figure.get_size_inches()).astype(int))
    text = (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert ">they bow</text>" in text
    assert "<dc:date>" not in text
    for name in ("c.pdf", "png"):
        with pytest.raises(ValueError, match=rf"^path: expected a \.png or \.svg file, got .*{name}$"):
            page.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "b.svg"]


def test_pictures_without_matplotlib_say_how_to_install_it(
    trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = r"^matplotlib is needed for pictures of routing: pip install 'intermoe\[viz\]'$"
    with pytest.raises(ModuleNotFoundError, match=told):
        routing_panel(trace, 320)
