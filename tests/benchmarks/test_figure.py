"""The figure is written, whole, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intermoe.benchmarks.harness.report import Report, Row

pytest.importorskip("matplotlib")

from intermoe.benchmarks.harness import figure


def test_png_and_svg(tmp_path: Path, make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    rows = [make_row(), make_row("authors' form", ratio=2.0), make_row(dtype="bfloat16", call="forward + backward")]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        figure.roofline(make_report(*rows), tmp_path / f"roofline{suffix}")
        assert (tmp_path / f"roofline{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_the_roofline_can_show(make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    rows = [
        make_row(),
        make_row("native, recompute", ratio=1.2),  # a variant of ours
        make_row("grouped_mm", ratio=1.1),
        make_row(step="vae"),
        make_row("dense network", flop_per_second=None),
        make_row("expert loop", ratio=1.3),
    ]
    assert [label for label, _ in figure.points(make_report(*rows))] == ["this package", "expert loop"]


def test_nothing_to_draw(tmp_path: Path, make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    with pytest.raises(ValueError, match="expected rows of the step 'moe' to draw"):
        figure.roofline(make_report(make_row(step="vae")), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def panel(report: Report) -> Any:
    """The axes of the report's only call."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    figure._panel(axes, report, figure.points(report))
    return axes


def test_points_lie_where_they_were_measured_and_ours_are_told_by_their_tokens(
    make_report: Callable[..., Report], make_row: Callable[..., Row]
) -> None:
    rows = [
        make_row(intensity=20.0, flop_per_second=3e9),
        make_row("dense network", ratio=0.5, dtype="bfloat16", intensity=40.0, flop_per_second=5e9),
    ]
    axes = panel(make_report(*rows))
    (ours, dense) = (line for line in axes.lines if line.get_marker() != "None")
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in (ours, dense)] == [(20.0, 3e9), (40.0, 5e9)]
    assert [line.get_marker() for line in (ours, dense)] == ["o", "s"]
    assert [line.get_color() for line in (ours, dense)] == [figure.COLOURS["float32"], figure.COLOURS["bfloat16"]]
    assert [text.xy for text in axes.texts if text.get_text() == "S=300"] == [(20.0, 3e9)]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(("kind", "told"), [("cpu", ", 2 threads"), ("cuda", "")])
def test_every_call_has_a_panel_of_its_own_points(
    kind: str,
    told: str,
    make_report: Callable[..., Report],
    make_row: Callable[..., Row],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In the order of the run; all share an axis that begins at a quarter of the least, and the legend has all."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self) or Path(path).write_text("."))
    rows = [
        make_row(call="forward + backward", intensity=20.0, flop_per_second=4e9),
        make_row(call="forward", intensity=30.0, flop_per_second=5e9, dtype="bfloat16"),
        make_row("authors' form", call="forward", ratio=2.0, intensity=40.0, flop_per_second=2e9, dtype="bfloat16"),
    ]
    report = make_report(*rows)
    figure.roofline(replace(report, machine=replace(report.machine, kind=kind)), tmp_path / "a.png")
    (whole,) = drawn
    panels = whole.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["forward + backward", "forward"]
    places = [
        [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() != "None"]
        for axes in panels
    ]
    assert places == [[(20.0, 4e9)], [(30.0, 5e9), (40.0, 2e9)]]
    assert [axes.get_ylim()[0] for axes in panels] == [0.5e9] * 2
    assert [axes.get_ylabel() for axes in panels] == ["FLOP/s", ""]
    assert [axes.get_xlabel() for axes in panels] == ["FLOP per byte that must be moved"] * 2
    assert panels[0].get_legend() is None
    names = [text.get_text() for text in panels[1].get_legend().get_texts()]
    assert names == ["float32", "bfloat16", "this package", "authors' form"]
    assert whole._suptitle.get_text() == f"The block's operation on Some CPU (R) @ 3 GHz{told}"


@pytest.mark.parametrize("half", [2e9, 400e9])
def test_a_ceiling_rises_with_the_copy_and_ends_at_the_product(
    half: float, make_report: Callable[..., Report], make_row: Callable[..., Row]
) -> None:
    """A copy of 20 GB/s and a product of 100 GFLOP/s meet at 5 FLOP a byte; half types are computed in the faster."""
    rows = [make_row(intensity=x, dtype=name) for x, name in ((4.0, "float32"), (40.0, "bfloat16"))]
    run = make_report(*rows)
    run = replace(run, ceilings=replace(run.ceilings, product={"float32": 100e9, "bfloat16": half}))
    axes = panel(run)
    rates = sorted({100e9, max(half, 100e9)})
    roofs = [line for line in axes.lines if line.get_marker() == "None"]
    assert len(roofs) == len(rates)
    for line, rate in zip(roofs, rates, strict=True):
        assert list(line.get_xdata()) == [1.0, rate / 20e9, 160.0]  # a quarter of the least, four times the most
        assert list(line.get_ydata()) == [20e9, rate, rate]
    told = [text.get_text() for text in axes.texts if "product" in text.get_text() or "copy" in text.get_text()]
    names = ["float32 and bfloat16: 100 GFLOP/s"] if half < 100e9 else ["float32: 100 GFLOP/s", "bfloat16: 400 GFLOP/s"]
    assert told == [*(f"large product, {name}" for name in names), "copy: 20 GB/s"]


def test_the_legend_has_what_is_drawn() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    figure._legend(axes, {"bfloat16"}, {"this package", "expert loop"})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["bfloat16", "this package", "expert loop"]
