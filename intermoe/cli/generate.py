"""``intermoe generate``: prompts to arrays and video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import (
    DeviceOption,
    GuidanceOption,
    ModelOption,
    StepsOption,
    check_drawing,
    check_folder,
    check_sampling,
    load_pipeline,
    progress_bar,
    reported,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intermoe.pipeline import MotionPipeline, PipelineResult

BATCH_SIZE = 8
DEFAULT_FRAMES = 120


class Format(str, Enum):
    """What ``generate`` can write."""

    npz = "npz"
    mp4 = "mp4"
    gif = "gif"


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What the two people do; several make several.")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts", help="Text file, a prompt a line.")] = None,
    frames: Annotated[
        int | None, typer.Option(help="Length in frames, 30 a second. Default: 120, or what the model can.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Prompt i is drawn with seed + i.")] = 0,
    steps: StepsOption = 50,
    guidance: GuidanceOption = 3.5,
    scheduler: Annotated[str, typer.Option(help="ddim, dpmsolver++, unipc or ddpm.")] = "ddim",
    out: Annotated[Path, typer.Option(help="Folder for the files; made if absent.")] = Path("results"),
    model: ModelOption = "salsa",
    format: Annotated[
        list[Format] | None, typer.Option(help="What to write; give it several times. Default: npz and mp4.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Generate motion: arrays (.npz) and video (.mp4, .gif), never over an existing file."""
    formats = list(dict.fromkeys(format or [Format.npz, Format.mp4]))
    with reported():
        chosen = _collect_prompts(prompts or [], prompts_file)
        check_drawing(chosen.value for chosen in formats)
        check_sampling(steps, guidance, seed)
        check_folder(out)
        pipeline = load_pipeline(model, device, frames=frames, scheduler=scheduler)
        num_frames = frames or min(DEFAULT_FRAMES, pipeline.config.max_frames)
        _check_prompts(pipeline, chosen, num_frames, prompts_file)
        for prompt in chosen:
            _warn_of_unknown_words(pipeline, prompt)
        out.mkdir(parents=True, exist_ok=True)
        settings: dict[str, str | int | float] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "scheduler": scheduler,
        }
        written: list[Path] = []
        with progress_bar() as progress:
            sampling = progress.add_task("sampling", total=-(-len(chosen) // BATCH_SIZE) * steps)
            writing = progress.add_task("writing", total=len(chosen) * len(formats))
            for start in range(0, len(chosen), BATCH_SIZE):
                result = pipeline(
                    chosen[start : start + BATCH_SIZE],
                    num_frames=num_frames,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    seed=seed + start,
                    scheduler=scheduler,
                    progress=lambda done, total: progress.advance(sampling),
                )
                for index in range(len(result.prompts)):
                    for path in _write(result, index, out, formats, model, settings):
                        written.append(path)
                        progress.advance(writing)
    for path in written:
        typer.echo(path)


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
        raise ValueError("prompts: a prompt must not be empty")
    return check_prompts(chosen)


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


def _warn_of_unknown_words(pipeline: MotionPipeline, prompt: str) -> None:
    unknown = pipeline.unknown_words(prompt)
    if unknown:
        listed = ", ".join(unknown)
        typer.echo(f"warning: the model has never seen: {listed} (in {prompt!r}); it can only guess", err=True)


def _body(joints: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What is drawn: (P, T, 22, 3). Of more joints these are the first, and such motion has its origin at a pelvis."""
    from intermoe.motion.skeleton import NUM_JOINTS

    if joints.shape[2] == NUM_JOINTS:
        return joints
    body = joints[:, :, :NUM_JOINTS].copy()
    body[..., 1] -= body[..., 1].min()
    return body


def _write(
    result: PipelineResult,
    index: int,
    folder: Path,
    formats: Sequence[Format],
    model: str,
    settings: dict[str, str | int | float],
) -> Iterator[Path]:
    """Write one motion in all formats under one new name, and tell each file when it is there."""
    from intermoe.viz import Scene, output_stem, save_gif, save_mp4, save_npz

    prompt = result.prompts[index]
    joints = result.joints[index].numpy()
    stem = output_stem(folder, prompt, [f".{chosen.value}" for chosen in Format])
    scene = Scene(_body(joints), prompt, fps=result.fps) if {Format.mp4, Format.gif} & set(formats) else None
    for chosen in formats:
        path = stem.with_name(f"{stem.name}.{chosen.value}")
        if scene is None or chosen is Format.npz:
            save_npz(
                path,
                joints=joints,
                motion=result.motion[index].numpy(),
                prompt=prompt,
                seed=result.seeds[index],
                model=model,
                settings=settings,
                fps=result.fps,
            )
        elif chosen is Format.mp4:
            save_mp4(path, scene)
        else:
            save_gif(path, scene)
        yield path
