"""``intermoe generate``: prompts to arrays and video."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    CameraOption,
    DeviceOption,
    FilesOption,
    FormatOption,
    GuidanceOption,
    ModelOption,
    SchedulerOption,
    SizeOption,
    StepsOption,
    check_folder,
    check_formats,
    check_sampling,
    launched,
    load_pipeline,
    naming,
    own_sampling,
    parse_view,
    progress_bar,
    reported,
)
from intermoe.cli.listed import PromptList

if TYPE_CHECKING:
    from intermoe.control import Control
    from intermoe.export import Take
    from intermoe.pipeline import MotionPipeline

BATCH_SIZE = 8
DEFAULT_FRAMES = 120


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What the two people do; several make several.")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts", help="Text file, a prompt a line.")] = None,
    frames: Annotated[
        int | None, typer.Option(help="Length in frames, 30 a second. Default: 120, or what the model can.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Prompt i is drawn with seed + i.")] = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    scheduler: SchedulerOption = None,
    out: FilesOption = Path("results"),
    model: ModelOption = DEFAULT_MODEL,
    format: FormatOption = None,
    control: Annotated[
        Path | None, typer.Option(help="JSON file of what every motion keeps: see the documentation on steering.")
    ] = None,
    react_to: Annotated[
        Path | None, typer.Option(help="File of motion whose first person is given, so that the other reacts.")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Interpolate the file of --react-to where it has another rate.")
    ] = False,
    timeline: Annotated[
        list[str] | None,
        typer.Option(help='"two people bow:90": a prompt and its frames; several make one scene, one after the other.'),
    ] = None,
    persons: Annotated[
        int | None, typer.Option(help="How many, 1 to 8; more than the model makes together are several groups.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Files named by the prompts' numbers; those that are in --out already are not made again. "
            "So it is in any case where several processes share the work.",
        ),
    ] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Also one mp4 of all motions, beside each other.")] = False,
    camera: CameraOption = "side",
    size: SizeOption = "640x640",
    device: DeviceOption = "auto",
) -> None:
    """Generate motion: arrays, video, files for other programs and a page to look at, never over an existing file.

    Many prompts: accelerate launch -m intermoe generate --prompts list.txt --out FOLDER shares them between processes.
    """
    with reported():
        here = launched()
        listed = resume or here.ranks > 1
        formats = check_formats(format or ["npz", "mp4"])
        check_formats(["mp4"] if grid else [])
        view = parse_view(camera, size)
        if control is not None and react_to is not None:
            raise ValueError("--control, --react-to: expected one of the two, got both")
        if resample and react_to is None:
            raise ValueError("--resample: expected with --react-to; in the file of --control it is a key, got alone")
        segments = _segments(timeline or [])
        if segments and (prompts or prompts_file or frames or control or react_to or persons):
            others = "prompt, --prompts, --frames, --persons, --control or --react-to"
            raise ValueError(f"--timeline: expected no {others} beside it, got one")
        if listed and (segments or grid):
            reason = "with --resume" if resume else "in several processes"
            raise ValueError(f"--timeline, --grid: expected neither {reason}, got one")
        chosen = [prompt for prompt, _ in segments] or _collect_prompts(prompts or [], prompts_file)
        check_sampling(steps, guidance, seed, seeds=len(chosen), scene=bool(segments))
        check_folder(out)
        place = here.device if device == "auto" else device
        pipeline = load_pipeline(model, place, frames=frames, scheduler=scheduler, steps=steps)
        kept = _read_control(pipeline, control, react_to, resample, frames)
        num_steps, scale = own_sampling(pipeline, steps, guidance, kept)
        first = segments[0][1] if segments else frames or _default_frames(kept, react_to)
        num_frames = frames or min(first, pipeline.config.max_frames)
        _check_prompts(pipeline, chosen, num_frames, prompts_file)
        if kept is not None:
            _check_control(pipeline, kept, num_frames, control, react_to)
        if persons is not None:
            _check_persons(pipeline, persons)
        details: dict[str, str | int | float] = {
            "model": model,
            "num_inference_steps": num_steps,
            "guidance_scale": scale,
            "scheduler": scheduler or pipeline.schedulers[0],
            **({"control": str(control or react_to)} if kept else {}),
        }
        options: dict[str, Any] = {
            "num_inference_steps": num_steps,
            "guidance_scale": scale,
            "scheduler": scheduler,
        }

        def sample(batch: range, progress: Callable[[int, int], None]) -> list[Take]:
            if segments:
                result = pipeline.timeline(segments, seed=seed, progress=progress, **options)
            else:
                result = pipeline(
                    [chosen[index] for index in batch],
                    num_frames=num_frames,
                    seed=seed + batch.start,
                    num_persons=persons,
                    control=kept,
                    progress=progress,
                    **options,
                )
            return [result.take(index, details=details, view=view) for index in range(len(result.prompts))]

        written: list[Path] = []
        takes: list[Take] = []

        def write(index: int, take: Take) -> Iterator[list[Path]]:
            if grid:
                takes.append(take)
            for paths in _write(take, out, formats):
                written.extend(paths)
                yield paths

        if listed:
            given: dict[str, str | int | float] = {"seed": seed, "frames": num_frames, "camera": camera, "size": size}
            given |= {} if persons is None else {"persons": persons}
            run = _prompt_list(out, chosen, formats, pipeline, {**details, **given}, control or react_to)
            with run.shared(here) as batches:
                _make(batches, sample, functools.partial(_write_listed, run, formats), shown=here.rank == 0)
            if here.rank == 0:
                typer.echo(out)
            return
        out.mkdir(parents=True, exist_ok=True)
        count = 1 if segments else len(chosen)
        _make([range(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)], sample, write)
        if grid:
            written.append(_write_grid(takes, out))
    for path in written:
        typer.echo(path)


Advance = Callable[[int, int], None]


def _make(
    batches: Sequence[range],
    sample: Callable[[range, Advance], list[Take]],
    write: Callable[[int, Take], Iterator[list[Path]]],
    *,
    shown: bool = True,
) -> None:
    """Sample batch after batch, and write each motion by its prompt's number."""
    with progress_bar() as progress:
        progress.disable = not shown
        sampling, writing = progress.add_task("sampling", total=None), progress.add_task("writing", total=None)
        for number, batch in enumerate(batches):

            def advance(done: int, total: int, before: int = number) -> None:
                progress.update(sampling, completed=before * total + done, total=len(batches) * total)

            progress.update(writing, total=sum(map(len, batches)))
            for index, take in zip(batch, sample(batch, advance), strict=True):
                for _ in write(index, take):
                    pass
                progress.advance(writing)


def _prompt_list(
    out: Path,
    prompts: Sequence[str],
    formats: Sequence[str],
    pipeline: MotionPipeline,
    settings: dict[str, str | int | float],
    control: Path | None,
) -> PromptList:
    """The run in ``out``, which goes on only with the same model and control, by content."""
    from intermoe.eval.runner import digest
    from intermoe.export import FORMATS, suffixes_of
    from intermoe.hub import model_folder

    settings["model"] = digest(model_folder(str(settings["model"])))
    if control is not None:
        settings["control"] = hashlib.sha256(control.read_bytes()).hexdigest()[:16]
    persons = int(settings.get("persons", pipeline.representation.persons))
    files = [suffix for name in formats for suffix in suffixes_of(FORMATS[name], persons)]
    return PromptList(out, prompts, files, BATCH_SIZE, settings)


def _write_listed(run: PromptList, formats: Sequence[str], index: int, take: Take) -> Iterator[list[Path]]:
    """The files of a prompt under its number, unless all are there: they hold the same."""
    from intermoe.export import FORMATS, save_take

    if not run.is_made(index):
        stem = run.stem(index)
        for chosen in formats:
            yield save_take(stem.with_name(stem.name + FORMATS[chosen].suffix), take)


def _collect_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given as arguments, then those of the file, a line each."""
    from intermoe.reading import numbered_lines
    from intermoe.text.protocol import check_prompts

    chosen = list(prompts)
    if file is not None:
        try:
            chosen += [line for _, line in numbered_lines(file)]
        except (OSError, ValueError) as error:
            raise ValueError(f"--prompts: {error}") from error
    if not chosen:
        raise ValueError("prompts: expected at least one, as an argument or in the file of --prompts, got none")
    if not all(prompt.strip() for prompt in chosen):
        raise ValueError("prompts: expected words in every prompt, got an empty one")
    return check_prompts(chosen)


def _segments(timeline: Sequence[str]) -> list[tuple[str, int]]:
    """Prompts with their frames, of ``prompt:frames``."""
    from intermoe.control.timeline import check_segments

    segments = []
    for text in timeline:
        prompt, colon, count = text.rpartition(":")
        if not (colon and prompt.strip() and count.isdecimal() and int(count) > 0):
            raise ValueError(f"--timeline: expected PROMPT:FRAMES, as 'two people bow:90', got {text!r}")
        segments.append((prompt.strip(), int(count)))
    try:
        return check_segments(segments) if segments else []
    except ValueError as error:
        raise ValueError(f"--timeline: {error}") from None


def _read_control(
    pipeline: MotionPipeline, control: Path | None, react_to: Path | None, resample: bool, frames: int | None
) -> Control | None:
    from intermoe.control.file import reaction_to, read_control

    try:
        if control is not None:
            return read_control(control, pipeline.representation)
        if react_to is None:
            return None
        longest = frames or pipeline.config.max_frames
        return reaction_to(react_to, pipeline.representation, resample=resample, max_frames=longest)
    except (OSError, ValueError) as error:
        raise ValueError(f"{'--react-to' if control is None else '--control'}: {error}") from error


def _check_control(
    pipeline: MotionPipeline, kept: Control, num_frames: int, control: Path | None, react_to: Path | None
) -> None:
    """Refuse by its file what the model cannot keep."""
    with naming(f"--react-to: {react_to}" if control is None else f"--control: {control}"):
        pipeline.check_control(kept, num_frames)


def _default_frames(control: Control | None, react_to: Path | None) -> int:
    """A reaction is as long as what is reacted to; what else is given lies within the motion."""
    if control is None:
        return DEFAULT_FRAMES
    last = max(
        [known.run.stop for known in control.known] + [max(target.frames) + 1 for target in control.targets], default=0
    )
    return last if react_to is not None else max(DEFAULT_FRAMES, last)


def _check_prompts(pipeline: MotionPipeline, chosen: Sequence[str], num_frames: int, file: Path | None) -> None:
    """Refuse what the model cannot take, by file and line, before anything is sampled."""
    from intermoe.reading import numbered_lines

    read = [] if file is None else [f"{file}: line {number}: " for number, _ in numbered_lines(file)]
    places = [""] * (len(chosen) - len(read)) + read
    for place, prompt in zip(places, chosen, strict=True):
        try:
            pipeline.check([prompt], num_frames)
        except ValueError as error:
            raise ValueError(f"{place}{error}") from None


def _check_persons(pipeline: MotionPipeline, persons: int) -> None:
    from intermoe.control.persons import check_persons

    try:
        check_persons(persons, pipeline.representation)
    except ValueError as error:
        raise ValueError(f"--persons: {error}") from None


def _write(take: Take, folder: Path, formats: Sequence[str]) -> Iterator[list[Path]]:
    """Write one motion in all formats under one new name, and tell each format's files when they are there."""
    from intermoe.export import FORMATS, free_stem, save_take

    with free_stem(folder, take.prompt) as stem:
        for chosen in formats:
            yield save_take(stem.with_name(stem.name + FORMATS[chosen].suffix), take)


def _write_grid(takes: Sequence[Take], folder: Path) -> Path:
    from intermoe.export import free_stem
    from intermoe.export.video import scene_of
    from intermoe.viz import Grid, save_mp4

    with free_stem(folder, "grid") as stem:
        path = stem.with_suffix(".mp4")
        save_mp4(path, Grid([scene_of(take) for take in takes]))
    return path
