"""The roofline figure: what the block's calls reach, under what this machine can reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intermoe.benchmarks.harness.report import Report, Row, si
from intermoe.files import replacing

COLOURS = {"float32": "#1f5a91", "bfloat16": "#c2571a", "float16": "#2c7d4f"}
MARKERS = {"this package": "o", "authors' form": "X", "expert loop": "v", "dense network": "s"}


def check() -> None:
    """Raise ``ModuleNotFoundError``, with the remedy, where the figure cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib is needed for the figure: pip install 'intermoe[bench]'") from error


def points(report: Report) -> list[tuple[str, Row]]:
    """What is drawn: in every case of the whole operation the default backend and three baselines, by their label."""
    found = []
    for row in report.rows:
        if row.step != "moe" or row.flop_per_second is None or row.intensity is None:
            continue
        first = row.ours and row.ratio == 1.0
        if first or row.entry in MARKERS:
            found.append(("this package" if first else row.entry, row))
    return found


def roofline(report: Report, path: str | Path) -> None:
    """Draw to ``path``, by its suffix PNG or SVG.

    Raises:
        ValueError: the report has no row of the whole operation. ModuleNotFoundError: matplotlib is absent.
    """
    check()
    drawn = points(report)
    if not drawn:
        raise ValueError("report: expected rows of the step 'moe' to draw, got none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    calls = list(dict.fromkeys(row.call for _, row in drawn))
    figure = Figure(figsize=(4.8 * len(calls), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(calls), sharey=True, squeeze=False)[0]
    for axes, call in zip(panels, calls, strict=True):
        _panel(axes, report, [(label, row) for label, row in drawn if row.call == call])
        axes.set_title(call, fontsize=10, loc="left")
    panels[0].set_ylabel("FLOP/s")
    panels[0].set_ylim(bottom=min(row.flop_per_second or 0.0 for _, row in drawn) / 4)
    _legend(panels[-1], {row.dtype for _, row in drawn}, {label for label, _ in drawn})
    threads = f", {report.machine.threads} threads" if report.machine.kind == "cpu" else ""
    figure.suptitle(f"The block's operation on {report.machine.device}{threads}", fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")


def _panel(axes: Any, report: Report, drawn: list[tuple[str, Row]]) -> None:
    from matplotlib.patheffects import withStroke

    xs = [row.intensity for _, row in drawn if row.intensity is not None]
    ridge = report.ceilings.product["float32"] / report.ceilings.copy
    _ceilings(axes, report, {row.dtype for _, row in drawn}, min(*xs, ridge) / 4, max(xs) * 4)
    for label, row in drawn:
        ours = label == "this package"
        axes.plot(
            row.intensity, row.flop_per_second, MARKERS[label], color=COLOURS[row.dtype], linestyle="",
            markerfacecolor=COLOURS[row.dtype] if ours else "white", markersize=8 if ours else 6, zorder=3 - (not ours),
        )  # fmt: skip
        if ours:
            place = (row.intensity, row.flop_per_second)
            text = f"S={row.shape['S']:g}"
            axes.annotate(
                text, place, xytext=(0, -15), textcoords="offset points", ha="center", fontsize=7, zorder=4,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _ceilings(axes: Any, report: Report, dtypes: set[str], lowest: float, highest: float) -> None:
    """Half types can be computed with in float32, so where their own products are slower that is their ceiling."""
    rates = report.ceilings.product
    for rate in sorted({max(rates[dtype], rates["float32"]) for dtype in dtypes}):
        names = [dtype for dtype in COLOURS if dtype in dtypes and max(rates[dtype], rates["float32"]) == rate]
        ridge = rate / report.ceilings.copy
        bends = [lowest, *([ridge] if lowest < ridge < highest else []), highest]
        heights = [min(rate, x * report.ceilings.copy) for x in bends]
        axes.plot(bends, heights, color=COLOURS[names[0]] if len(names) == 1 else "#555555", linewidth=1.5)
        tf32 = report.machine.kind == "cuda" and report.machine.float32_products != "highest"
        spoken = ["float32 (TF32)" if tf32 and name == "float32" else name for name in names]
        text = f"large product, {' and '.join(spoken)}: {si(rate, 'FLOP/s')}"
        axes.annotate(text, (highest, heights[-1]), xytext=(0, 5), textcoords="offset points", ha="right", fontsize=8)
    axes.annotate(  # right of the line's lower end, where no result of a real size lies
        f"copy: {si(report.ceilings.copy, 'B/s')}", (lowest, lowest * report.ceilings.copy), xytext=(8, -2),
        textcoords="offset points", ha="left", fontsize=8,
    )  # fmt: skip


def _legend(axes: Any, dtypes: set[str], labels: set[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=dtype) for dtype, colour in COLOURS.items() if dtype in dtypes]
    for label, marker in MARKERS.items():
        if label in labels:
            face = "grey" if label == "this package" else "white"
            handles.append(Line2D([], [], color="grey", marker=marker, markerfacecolor=face, linestyle="", label=label))
    axes.legend(handles=handles, loc="lower right", fontsize=8, frameon=False, ncols=2)
