"""``intermoe bench``: measure this machine, compare two measurements, profile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import DeviceOption, check_folder, print_table, progress_bar, reported, usable_device

if TYPE_CHECKING:
    from intermoe.benchmarks.harness.case import Scope


def bench(
    full: Annotated[bool, typer.Option("--full", help="All sizes and the scaling curves.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes: does all of it run? Times mean nothing.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this step; may be given several times.")] = None,
    match: Annotated[
        list[str] | None, typer.Option(help="Only cases whose name holds this text, e.g. S=4800; all of several.")
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for <device>/<date>.json, .md, .png and .svg.")] = Path("results"),
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: print what changed from the first JSON file to the second."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace one block and one denoiser call instead of timing.")
    ] = False,
) -> None:
    """Throughput of every step beside its baselines; nothing that computes wrongly is timed."""
    with reported():
        if full and quick:
            raise ValueError("--quick: expected without --full, got both")
        if compare is not None:
            _compare(*compare)
            return
        check_folder(out)
        from intermoe.benchmarks.harness.case import Scope

        scope = Scope(usable_device(device), "full" if full else "quick" if quick else "default")
        if profile:
            _profile(scope, out)
        else:
            _measure(scope, tuple(only or ()), tuple(match or ()), out)


def _measure(scope: Scope, only: tuple[str, ...], match: tuple[str, ...], out: Path) -> None:
    from intermoe.benchmarks.harness import figure, goals, suite
    from intermoe.benchmarks.harness import report as reports

    todo = suite.cases(scope, only or suite.STEPS, match)
    figure.check()
    with progress_bar() as bar:
        task = bar.add_task("ceilings", total=None)
        told = 0
        for report in suite.measure(scope, todo):
            done = len(todo) - report.to_do
            bar.update(task, completed=done, total=len(todo), description=todo[done].name if report.to_do else "done")
            path = report.save(out)  # a run that is cut leaves what it has measured
            if done > told and not bar.console.is_terminal:
                typer.echo(f"[{done}/{len(todo)}] {reports.line(report, todo[told].name)}", err=True)
            told = done
    for row in reports.table(report.rows):
        typer.echo(row)
    if judged := goals.judge(report):
        typer.echo("\n".join(["", *goals.table(judged), ""]))
    with contextlib.suppress(ValueError):  # steps without counted work have no place under a roofline
        for suffix in (".png", ".svg"):
            figure.roofline(report, path.with_suffix(suffix))
    typer.echo(path)
    for failure in report.failed:
        typer.echo(f"error: {failure.case}: {failure.entry}: {failure.reason}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _compare(old: Path, new: Path) -> None:
    from intermoe.benchmarks.harness import report as reports

    changes = reports.compare(reports.Report.load(old), reports.Report.load(new))
    lines = [["case", "old", "new", "new / old", "beyond the spread"]]
    for change in changes:
        verdict = "" if change.verdict == "same" else change.verdict
        times = (reports.si(change.old, "s"), reports.si(change.new, "s"))
        lines.append([change.key, *times, f"{change.ratio:.2f}", verdict])
    print_table(lines)
    slower = sum(change.verdict == "slower" for change in changes)
    typer.echo(f"{len(changes)} rows in common, {slower} slower beyond the spread")
    if slower:
        raise typer.Exit(1)


def _profile(scope: Scope, out: Path) -> None:
    from intermoe.benchmarks.harness import profiling

    for path in profiling.write(scope, out):
        if path.suffix == ".md":
            typer.echo(path.read_text(encoding="utf-8"))
        typer.echo(path)
