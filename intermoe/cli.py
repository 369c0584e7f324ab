"""The ``intermoe`` command: thin wrappers that check everything first, then call the library.

What cannot work is told in one line with exit code 2 before any work starts. Heavy imports happen inside the commands,
so that ``intermoe --help`` is quick. Under a launcher: ``accelerate launch -m intermoe.cli train vae ...``.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

try:
    import typer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the intermoe command needs typer: pip install 'intermoe[all]'") from error

if TYPE_CHECKING:
    from rich.progress import Progress

    from intermoe.pipeline import InterMoEPipeline, PipelineResult

app = typer.Typer(
    help="Text to the motion of two people.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
train_app = typer.Typer(help="Train a model from a configuration file (YAML or JSON).", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")

BATCH_SIZE = 8
DEFAULT_FRAMES = 120
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)


class Format(str, Enum):
    """What ``generate`` can write."""

    npz = "npz"
    mp4 = "mp4"
    gif = "gif"


ModelOption = Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]
StepsOption = Annotated[int, typer.Option(help="Sampling steps.")]
GuidanceOption = Annotated[float, typer.Option(help="Guidance scale; 1 turns guidance off.")]
DataOption = Annotated[Path, typer.Option(help="Folder of motion in InterHuman's layout.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at an item that cannot be used.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in --out.")]
ConfigArgument = Annotated[Path, typer.Argument(help="Configuration file, or the name of a shipped one.")]
RunOption = Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, logs and model.")]
TrainDataOption = Annotated[Path | None, typer.Option(help="Folder of the data in place of the configured one.")]


def main() -> None:
    """Entry point of the ``intermoe`` command."""
    warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from intermoe import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
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
    with _reported():
        chosen = _collect_prompts(prompts or [], prompts_file)
        _check_drawing(formats)
        _check_sampling(steps, guidance, seed)
        _check_folder(out)
        pipeline = _load(model, device, frames=frames, scheduler=scheduler)
        num_frames = frames or min(DEFAULT_FRAMES, pipeline.config.max_frames)
        pipeline.check(chosen, num_frames)
        pipeline.text_encoder(chosen)  # refuses a prompt that is too long before anything is sampled
        for prompt in chosen:
            _warn_of_unknown_words(pipeline, prompt)
        out.mkdir(parents=True, exist_ok=True)
        settings: dict[str, str | int | float] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "scheduler": scheduler,
        }
        written: list[Path] = []
        with _progress() as progress:
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


@train_app.command("vae")
def train_vae(
    config: ConfigArgument,
    out: RunOption,
    data: TrainDataOption = None,
    init: Annotated[Path | None, typer.Option(help="Model folder of a trained autoencoder to start from.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Train the autoencoder; the folder's model/ is what the denoiser's training needs."""
    with _reported():
        path = _config_path(config)
        _check_folder(out)
        from intermoe.train import run_vae

        typer.echo(run_vae(path, out, resume=resume, data=data, init=init))


@train_app.command("denoiser")
def train_denoiser(
    config: ConfigArgument,
    out: RunOption,
    vae: Annotated[
        Path | None, typer.Option(help="Model folder of a trained autoencoder; not needed to resume.")
    ] = None,
    data: TrainDataOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train denoiser and text encoder; the folder's model/ is what generate --model takes."""
    with _reported():
        path = _config_path(config)
        _check_folder(out)
        from intermoe.train import run_denoiser

        typer.echo(run_denoiser(path, out, vae=vae, resume=resume, data=data))


@evaluate_app.command("kinematics")
def evaluate_kinematics(
    data: DataOption,
    model: ModelOption = "salsa",
    split: Annotated[str, typer.Option(help="Name of a file in the data's split/, without .txt.")] = "val",
    seeds: Annotated[str, typer.Option(help="Seeds of the generated clips, separated by commas.")] = "0,1,2",
    steps: StepsOption = 50,
    guidance: GuidanceOption = 3.5,
    out: Annotated[Path, typer.Option(help="JSON file for the numbers.")] = Path("kinematics.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Ground truth, reconstruction and generation side by side: a table, and all numbers as JSON."""
    with _reported():
        chosen = _parse_seeds(seeds)
        _check_sampling(steps, guidance, min(chosen))
        _check_folder(out.parent)
        pipeline = _load(model, device)
        from intermoe.data import InterHumanDataset
        from intermoe.eval import evaluate_kinematics

        config = pipeline.config
        dataset = InterHumanDataset(
            data, split, min_frames=config.min_frames, max_frames=config.max_frames, training=False, strict=strict
        )
        with _progress() as progress:
            task = progress.add_task("generating", total=None)
            report = evaluate_kinematics(
                pipeline,
                dataset,
                seeds=chosen,
                num_inference_steps=steps,
                guidance_scale=guidance,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        report.save(out)
    _print_table(report.table())
    typer.echo(out)


@app.command()
def stats(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="File to write, .json or .npz.")],
    split: Annotated[str, typer.Option(help="Name of a file in the data's split/, without .txt.")] = "train",
    augment: Annotated[bool, typer.Option(help="Mirror items and exchange persons at random, as in training.")] = True,
    strict: StrictOption = False,
) -> None:
    """Mean and standard deviation of the motion representation over a data set."""
    with _reported():
        if out.suffix not in (".json", ".npz"):
            raise ValueError(f"--out: expected a .json or .npz file, got {out}")
        _check_folder(out.parent)
        from intermoe.data import InterHumanDataset, compute_statistics

        dataset = InterHumanDataset(data, split, mirror=augment, swap_persons=augment, training=False, strict=strict)
        out.parent.mkdir(parents=True, exist_ok=True)
        compute_statistics(dataset, passes=4 if augment else 1).save(out)
    typer.echo(out)


@contextmanager
def _reported() -> Iterator[None]:
    """What the user can mend is told in one line, with exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


def _collect_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    chosen = list(prompts)
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        chosen += [line.strip() for line in lines if line.strip()]
    if not chosen:
        raise ValueError("prompts: expected at least one, as an argument or in the file of --prompts, got none")
    if not all(prompt.strip() for prompt in chosen):
        raise ValueError("prompts: a prompt must not be empty")
    return chosen


def _check_drawing(formats: Sequence[Format]) -> None:
    needed = {Format.mp4: ("PIL", "imageio_ffmpeg"), Format.gif: ("PIL",), Format.npz: ()}
    for chosen in formats:
        for module in needed[chosen]:
            if importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(f"--format {chosen.value} needs {module}: pip install 'intermoe[viz]'")


def _check_sampling(steps: int, guidance: float, seed: int) -> None:
    if steps < 1:
        raise ValueError(f"--steps: must be >= 1, got {steps}")
    if not guidance >= 1:
        raise ValueError(f"--guidance: must be >= 1, got {guidance}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed: must be in [0, 2**63), got {seed}")


def _check_folder(folder: Path) -> None:
    """Raise if files cannot be written to ``folder``, which need not exist; make nothing."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"--out: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"--out: no permission to write to {existing}")


def _parse_seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: expected numbers separated by commas, got {text!r}") from None


def _config_path(config: Path) -> Path:
    shipped = Path(__file__).parent / "train" / "configs"
    if config.is_file():
        return config
    by_name = shipped / f"{config}.yaml"
    if config.parent == Path() and by_name.is_file():
        return by_name
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise FileNotFoundError(f"config: {str(config)!r} is neither a file nor a shipped configuration ({names})")


def _load(model: str, device: str, *, frames: int | None = None, scheduler: str | None = None) -> InterMoEPipeline:
    """The pipeline; what its configuration alone can refuse is refused before the weights are read."""
    import torch

    from intermoe.config import PipelineConfig
    from intermoe.diffusion import SCHEDULERS
    from intermoe.pipeline import CONFIG_FILE, InterMoEPipeline, model_folder

    config = PipelineConfig.load(model_folder(model) / CONFIG_FILE)
    if frames is not None and not config.min_frames <= frames <= config.max_frames:
        raise ValueError(
            f"--frames: must be in [{config.min_frames}, {config.max_frames}] for model {model!r}, got {frames}"
        )
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise ValueError(f"--scheduler: must be one of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: cannot use {device!r}: {error}") from error
    return InterMoEPipeline.from_pretrained(model, device=device)


def _warn_of_unknown_words(pipeline: InterMoEPipeline, prompt: str) -> None:
    unknown = pipeline.text_encoder.unknown_words(prompt)
    if unknown:
        listed = ", ".join(unknown)
        typer.echo(f"warning: the model has never seen: {listed} (in {prompt!r}); it can only guess", err=True)


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
    scene = Scene(joints, prompt, fps=result.fps) if {Format.mp4, Format.gif} & set(formats) else None
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


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _print_table(lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*lines[0])
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
