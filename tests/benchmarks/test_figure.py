"""The figure is written, whole, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
