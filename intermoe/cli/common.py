"""What the commands share: options, checks before any work, errors in one line, progress and tables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from intermoe.control import Control
    from intermoe.export import View
    from intermoe.pipeline import MotionPipeline

USER_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)

DEFAULT_MODEL = "duets"
ModelOption = Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, xpu, mps, ...; auto takes a GPU if there is one.")]
StepsOption = Annotated[int | None, typer.Option(help="Sampling steps; by default the model's own number.")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Guidance scale, by default the model's own; 1 turns guidance off.")
]
DataOption = Annotated[Path, typer.Option(help="Folder of the data as published, or its cache from intermoe prepare.")]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(help="npz, bvh, glb, amass, html, mp4 or gif; give it several times. Default: npz and mp4."),
]
CameraOption = Annotated[str, typer.Option(help="Of videos and pages: side, front, top or follow.")]
SizeOption = Annotated[str, typer.Option(help="Of videos: width x height in pixels, even.")]
SplitOption = Annotated[str, typer.Option(help="Name of a split of the data.")]
SeedsOption = Annotated[str, typer.Option(help="Seeds of the generated clips, separated by commas.")]
SchedulerOption = Annotated[str | None, typer.Option(help="Sampler of the model, by default its first.")]
FilesOption = Annotated[Path, typer.Option(help="Folder for the files; made if absent.")]
ChanceOption = Annotated[int, typer.Option(help="Of everything random.")]
NoiseOption = Annotated[int, typer.Option(help="Of the noise.")]
PortOption = Annotated[int, typer.Option(help="Of the page on this machine; another one is taken if it is not free.")]
NumbersOption = Annotated[Path, typer.Option(help="New JSON file for the numbers.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at an item that cannot be used.")]


@contextmanager
def reported() -> Iterator[None]:
    """What the user can mend is told in one line, with exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        told = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and error.name and told == f"No module named {error.name!r}":
            told = f"{error.name} is needed: pip install 'intermoe[{extra_of(error.name)}]'"
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(2) from error


def extra_of(module: str) -> str:
    """The extra of this package that brings a module: the first that lists it, or the one of everything."""
    package = {"PIL": "pillow", "yaml": "pyyaml"}.get(module, module).partition(".")[0].replace("_", "-").lower()
    try:
        lines = importlib.metadata.requires("intermoe") or []
    except importlib.metadata.PackageNotFoundError:  # sources that were never installed
        lines = []
    for line in lines:
        listed = re.match(r"""([\w.-]+).*extra == ["'](\w+)["']""", line)
        if listed is not None and listed[1].lower() == package:
            return listed[2]
    return "all"


@contextmanager
def naming(option: str) -> Iterator[None]:
    """What is wrong with what an option gave names the option."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {error}") from error


def file_or_shipped(name: Path, argument: str, folder: str, what: str) -> Path:
    """A file, or the recipe that ships under this name in ``folder`` of the recipes.

    Raises:
        FileNotFoundError: neither; lists the names.
    """
    shipped = Path(__file__).parents[1] / "train" / "configs" / folder
    by_name = shipped / f"{name}.yaml"
    if name.is_file():
        return name
    if name.parent == Path() and by_name.is_file():
        return by_name
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise FileNotFoundError(f"{argument}: {str(name)!r} is neither a file nor a shipped {what} ({names})")


def captions_by_activity(option: str, name: str | None) -> dict[str, list[str]] | None:
    """What ``--wordings`` or ``--paraphrases`` gave: a file, or the name of data that one ships for."""
    from intermoe.data.activities import read_wordings, shipped_wordings

    with naming(option):
        return None if name is None else read_wordings(shipped_wordings(name, option.removeprefix("--")))


@dataclass(frozen=True)
class Process:
    """Which of how many processes this is, on what device, and how it waits for the others."""

    rank: int = 0
    ranks: int = 1
    device: str = "auto"
    wait: Callable[[], object] = lambda: None


def launched() -> Process:
    """This process as ``accelerate launch`` started it, or the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Process()
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    # The others' last pieces may be long. By gloo on any device: it tells at once of a process that has ended.
    others = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))

    def wait() -> None:
        try:
            torch.distributed.barrier(others)
        except RuntimeError as error:
            raise ChildProcessError(
                "another process has ended before its part was done; what is written stays: see what it says, and run "
                "the command again"
            ) from error

    return Process(state.process_index, state.num_processes, str(state.device), wait)


def check_sampling(
    steps: int | None, guidance: float | None, seed: int, *, seeds: int = 1, scene: bool = False
) -> None:
    """Refuse what no model samples with; ``None`` is the model's own. ``seeds`` are drawn with from ``seed`` on.

    A ``scene`` has more windows than are known beforehand, each with a seed of its own.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps: expected >= 1, got {steps}")
    if guidance is not None and not 1 <= guidance < math.inf:
        raise ValueError(f"--guidance: expected >= 1 and finite, got {guidance}")
    if not 0 <= seed <= 2**63 - seeds:
        end = "2**63)" if seeds == 1 else f"2**63 - {seeds}] for {seeds} prompts"
        raise ValueError(f"--seed: expected a value in [0, {end}, got {seed}")
    if scene and seed > 2**62:
        raise ValueError(f"--seed: expected a value in [0, 2**62] for a scene, got {seed}")


def check_folder(folder: Path) -> None:
    """Raise if files cannot be written to ``folder``, which need not exist; make nothing."""
    with naming("--out"):
        existing = folder.absolute()
        while True:
            try:
                existing.lstat()  # a link to nothing is there, and no folder
                break
            except (FileNotFoundError, NotADirectoryError):
                existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {existing}")


def check_new_file(path: Path) -> None:
    """Raise if ``path`` cannot be written as a new file; results are not overwritten in silence."""
    from intermoe.files import refuse_existing

    check_folder(path.parent)
    try:
        refuse_existing(path)
    except FileExistsError as error:
        raise FileExistsError(f"--out: {error}") from None


def check_drawing(formats: Iterable[str]) -> None:
    """Raise if a package is missing that files of one of ``formats`` (suffixes without the dot) need."""
    moving = ("matplotlib", "PIL")
    needed = {"png": ("matplotlib",), "svg": ("matplotlib",), "gif": moving, "mp4": (*moving, "imageio_ffmpeg")}
    for chosen in formats:
        for module in needed.get(chosen, ()):
            if importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(f"--format {chosen} needs {module}: pip install 'intermoe[viz]'")


def check_formats(names: Sequence[str]) -> list[str]:
    """``names`` without repetition. Raises where one is unknown, or a package that it needs is missing."""
    from intermoe.export import FORMATS, written

    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in written():
            raise ValueError(f"--format: expected one of {', '.join(written())}, got {name!r}")
        FORMATS[name].check()
    return chosen


def parse_view(camera: str, size: str) -> View:
    from intermoe.export import View

    edges = size.lower().split("x")
    if len(edges) != 2 or not all(edge.isdecimal() and len(edge) <= 5 for edge in edges):
        raise ValueError(f"--size: expected WIDTHxHEIGHT, as 640x640, got {size!r}")
    return View(camera, (int(edges[0]), int(edges[1])))


def parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: expected numbers separated by commas, got {text!r}") from None
    if not all(0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds: expected different numbers in [0, 2**32), got {text!r}")
    return seeds


def load_pipeline(
    model: str, device: str, *, frames: int | None = None, scheduler: str | None = None, steps: int | None = None
) -> MotionPipeline:
    """The pipeline; what its configuration alone can refuse is refused before the weights are read."""
    import torch

    from intermoe import backends
    from intermoe.pipeline import SYSTEMS, MotionPipeline, model_config

    config = model_config(model)
    if frames is not None and not config.min_frames <= frames <= config.max_frames:
        raise ValueError(
            f"--frames: expected a value in [{config.min_frames}, {config.max_frames}] for model {model!r}, "
            f"got {frames}"
        )
    if steps is not None and steps < config.min_steps:
        raise ValueError(f"--steps: expected >= {config.min_steps} for model {model!r}, got {steps}")
    if steps is not None and config.max_steps is not None and steps > config.max_steps:
        raise ValueError(
            f"--steps: expected a value in [1, {config.max_steps}], the schedule of model {model!r}, got {steps}"
        )
    schedulers = SYSTEMS[config.system].schedulers
    if scheduler is not None and scheduler not in schedulers:
        raise ValueError(f"--scheduler: expected one of {', '.join(schedulers)}, got {scheduler!r}")
    place = usable_device(device)
    backends.resolve(place, torch.float32)  # refuses what is forced and cannot serve
    return MotionPipeline.from_pretrained(model, device=place)


def own_sampling(
    pipeline: MotionPipeline, steps: int | None, guidance: float | None, control: Control | None = None
) -> tuple[int, float]:
    """Steps and guidance: the given ones, or the model's own with this control."""
    return (
        pipeline.config.default_steps if steps is None else steps,
        pipeline.default_guidance(control) if guidance is None else guidance,
    )


def open_model(
    model: str, device: str, out: Path, sampling: tuple[int | None, float | None], seed: int, frames: int | None = None
) -> tuple[MotionPipeline, dict[str, Any]]:
    """The pipeline that an evaluation is of, and its steps and guidance, by default its own, as options of a sampler.

    What can be refused, the file ``out`` for the numbers included, is refused before the weights are read.
    """
    steps, guidance = sampling
    check_sampling(steps, guidance, seed)
    check_new_file(out)
    pipeline = load_pipeline(model, device, frames=frames, steps=steps)
    own_steps, own_guidance = own_sampling(pipeline, steps, guidance)
    return pipeline, {"num_inference_steps": own_steps, "guidance_scale": own_guidance}


def usable_device(name: str) -> torch.device:
    """The device of that name; of "auto" the first of cuda, xpu, mps and cpu that is there."""
    import torch

    if name == "auto":
        there = (
            ("cuda", torch.cuda.is_available()),
            ("xpu", torch.xpu.is_available()),
            ("mps", torch.backends.mps.is_available()),
        )
        name = next((device for device, is_there in there if is_there), "cpu")
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ModuleNotFoundError) as error:
        raise ValueError(f"--device: expected a device of this machine, got {name!r}: {error}") from error
    if place.type == "meta":
        raise ValueError("--device: expected a device that holds numbers, got 'meta'")
    return place


def progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def progress(description: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar that moves with every call ``(done, total)`` of the function it gives."""
    with progress_bar() as bar:
        bar.disable = not shown
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Report(Protocol):
    """Numbers of an evaluation."""

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        ...


def save_report(report: Report, out: Path, *tables: list[list[str]]) -> None:
    """Write ``report`` and show its ``tables`` and where it is."""
    with reported():
        out.parent.mkdir(parents=True, exist_ok=True)
        report.save(out)
    for table in tables:
        print_table(table)
    typer.echo(out)


def print_table(lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*lines[0])
    for line in lines[1:]:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 250  # a file or a pipe has no width to fit
    console.print(table)
