"""The roofline figure: what each call reaches, under what this machine can reach."""

from __future__ import annotations

from pathlib import Path

from intermoe.benchmarks.results import Report, Row
from intermoe.files import replacing

STEPS = ("experts", "moe", "denoiser")
"""Steps whose time is in matrix products; the others move memory."""
COLOURS = {"float32": "#1f5a91", "bfloat16": "#c2571a", "float16": "#2c7d4f"}
MARKERS = {"experts": "s", "moe": "o", "denoiser": "D"}


def check() -> None:
    """Raise ``ModuleNotFoundError``, with the remedy, where the figure cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib is needed for the figure: pip install 'intermoe[bench]'") from error


def points(report: Report) -> list[tuple[Row, float, float]]:
    """Ours and the dense network where their work is counted: row, FLOP per byte, FLOP/s."""
    found = []
    for row in report.rows:
        if row.step not in STEPS or row.flop_per_second is None or row.intensity is None:
            continue
        if row.ours or row.entry in BASELINES:
            found.append((row, row.intensity, row.flop_per_second))
    return found


BASELINES = ("authors' form", "authors' block", "dense network")


def roofline(report: Report, path: str | Path) -> None:
    """Draw to ``path``, by its suffix PNG or SVG.

    Raises:
        ValueError: the report has no row whose work is counted. ModuleNotFoundError: matplotlib is absent.
    """
    check()
    drawn = points(report)
    if not drawn:
        raise ValueError("report: no row of experts, moe or denoiser to draw, run these steps")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lowest = min(x for _, x, _ in drawn) / 2
    highest = max(x for _, x, _ in drawn) * 2
    copy = report.ceilings.copy
    for dtype, rate in report.ceilings.product.items():
        if dtype not in {row.dtype for row, _, _ in drawn}:
            continue
        ridge = rate / copy
        xs = [x for x in (lowest, ridge, highest) if lowest <= x <= highest]
        axes.plot(xs, [min(rate, x * copy) for x in xs], color=COLOURS[dtype], linewidth=1.5)
        axes.annotate(
            f"product {dtype}: {rate / 1e12:.3g} TFLOP/s", (highest, min(rate, highest * copy)), xytext=(0, 4),
            textcoords="offset points", ha="right", color=COLOURS[dtype], fontsize=9,
        )  # fmt: skip
    for row, x, y in drawn:
        face = COLOURS[row.dtype] if row.ours and row.entry != "reference" else "white"
        axes.plot(x, y, MARKERS[row.step], color=COLOURS[row.dtype], markerfacecolor=face, markersize=7)
    for row, x, y in drawn:
        if row.ours and row.entry != "reference" and row.ratio == 1 and "S" in row.shape:
            axes.annotate(f"S={row.shape['S']:g}", (x, y), xytext=(6, -10), textcoords="offset points", fontsize=8)
    handles = [Line2D([], [], color="grey", marker=m, linestyle="", label=step) for step, m in MARKERS.items()]
    handles.append(Line2D([], [], color="grey", marker="o", linestyle="", label="this package"))
    handles.append(
        Line2D([], [], color="grey", marker="o", markerfacecolor="white", linestyle="", label="baselines, reference")
    )
    axes.legend(handles=handles, loc="lower right", fontsize=8, frameon=False, ncols=2)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved", ylabel="FLOP/s")
    axes.set_title(f"{report.machine.device}, copy {copy / 1e9:.3g} GB/s", fontsize=10, loc="left")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
