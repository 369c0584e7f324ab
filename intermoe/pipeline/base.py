"""The contract that every system keeps."""

from __future__ import annotations

import functools
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from intermoe.checkpoints import check_weight_dtype
from intermoe.config import check_guidance, check_integer, check_number
from intermoe.control.known import RESAMPLING, Control, check_resampling
from intermoe.control.live import CHUNK, STEPS, Live
from intermoe.control.persons import check_persons, count_groups, crowd
from intermoe.control.scene import MAX_SEED, OVERLAP, Scene
from intermoe.control.timeline import Segments, check_segments, count_windows, windows
from intermoe.hub import CONFIG_FILE, check_upload, model_card, model_folder, upload
from intermoe.motion.representation import Representation
from intermoe.pipeline.models import ModelConfig, system_of
from intermoe.pipeline.result import PipelineResult
from intermoe.pipeline.surroundings import evaluating, own_ways
from intermoe.text.protocol import check_prompts

if TYPE_CHECKING:
    from typing_extensions import Self

UNTRAINED = "was not trained with noise levels of persons and frames: what is known is kept by replacement"

Progress = Callable[[int, int], None]
CALLS_NETWORKS = ("sample", "encode", "decode", "denoise_once")
"""Methods of a system that call its networks."""


class MotionPipeline(ABC):
    """A whole model of one system.

    It works in evaluation mode: parts that a caller has put into ``train()`` are so again afterwards.

    Attributes:
        config: the model's configuration.
        representation: of the motion it makes.
        config_type: its class.
        schedulers: names of the samplers that ``sample`` takes.
        frame_multiple: frames that are coded together; ``encode`` takes a multiple of them.
        controls: what of ``intermoe.control.Control`` its ``sample`` follows: ``"known"``, or only ``"reaction"``, all
            frames of one person; ``"targets"``.
        trained_with_levels: whether the network can be told that persons or frames are known
            (``intermoe.diffusion.KnownLatents``).
    """

    config_type: ClassVar[type[ModelConfig]]
    schedulers: ClassVar[tuple[str, ...]] = ()
    config: ModelConfig
    representation: Representation
    frame_multiple: int = 1
    controls: ClassVar[tuple[str, ...]] = ()
    trained_with_levels: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in CALLS_NETWORKS:
            if name in vars(cls):
                setattr(cls, name, _in_evaluation(vars(cls)[name]))

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a model folder, a shipped model by its name, or one of the Hub by its id. Never unpickles.

        Called on ``MotionPipeline`` it loads a model of any system, called on a system's class one of that system.

        Args:
            path_or_name: a folder, a shipped name (``"duets"``) or the Hub's ``"owner/name"``; a folder comes first.
            revision: branch, tag or commit of a model of the Hub, by default its main branch.
            torch_dtype: of the weights, by default float32 however they are stored; see ``to``.
            device: where the weights go.

        Raises:
            FileNotFoundError: neither a folder with a model, nor a shipped name, nor to be had from the Hub.
            ValueError: a model of another system, a file of the model that is broken or does not fit the
                configuration (names file and key), or a revision of what is not of the Hub.
            TypeError: ``torch_dtype`` is none of float16, bfloat16, float32 and float64.
        """
        folder = model_folder(path_or_name, revision)
        system = system_of(folder / CONFIG_FILE)
        if not issubclass(system, cls):
            raise ValueError(f"model: expected one of {cls.__name__}, got one of {system.__name__} in {folder}")
        with own_ways():
            return system.load(folder).to(device, torch_dtype)

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder that ``save_pretrained`` wrote, on the CPU; raises as ``from_pretrained``."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and, for an own tokenizer, tokenizer.json; each whole or not at all.

        Args:
            folder: made if absent.
            dtype: storage type of the weights (``torch.float16`` halves the file); what must stay in float32 does.
                Loading gives float32 weights in any case.
        """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: torch.dtype | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model of intermoe",
        token: str | None = None,
    ) -> str:
        """Write the model and a card with tags to a repository of the Hub, in one commit; returns its address.

        A card that the repository has is kept.

        Args:
            repo_id: ``owner/name``; made if absent.
            dtype: storage type of the weights, as in ``save_pretrained``.
            private: of a repository that is made.
            revision: branch, made if absent; by default the main branch.
            token: by default that of ``hf auth login`` or ``HF_TOKEN``.

        Raises:
            ModuleNotFoundError: huggingface_hub is absent. ValueError: ``repo_id`` is no such name.
            FloatingPointError: a weight that is not finite; nothing is sent. OSError: the Hub cannot be reached or
                refuses; names the repository.
        """
        check_upload(repo_id, private, revision)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, dtype=dtype)
            card = model_card(
                repo_id,
                system=self.config.system,
                representation=self.representation,
                parameters=sum(each.numel() for module in self.modules.values() for each in module.parameters()),
                fps=self.config.fps,
                frames=(self.config.min_frames, self.config.max_frames),
            )
            return upload(
                repo_id, folder, card=card, private=private, revision=revision, message=commit_message, token=token
            )

    @property
    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The parts with weights, by the names under which these are saved."""

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[str],
        lengths: Sequence[int],
        seeds: Sequence[int],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        scheduler: str | None = None,
        control: Control | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """One motion (P, lengths[i], ...) for each prompt, float32 on CPU, un-normalised, in the representation.

        A motion's noise depends on its seed and length alone, and what is beyond its length is masked: a sample depends
        on the others of its call by rounding only.

        Args:
            num_inference_steps: solver steps.
            guidance_scale: >= 1, 1 for no guidance.
            scheduler: one of ``schedulers``, by default their first.
            control: what every motion has to keep, for systems with ``controls``.
            progress: called as ``progress(steps_done, steps)``.
        """

    @property
    def has_latents(self) -> bool:
        """Whether the system codes motion: ``encode`` and ``decode`` are there."""
        return type(self).encode is not MotionPipeline.encode

    def encode(self, motion: Tensor) -> Tensor:
        """Motion (B, P, T, ...) to latents (B, P, T', X), where the system has them.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"encode: expected a system with latents, got {self.config.system}")

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, P, T', X) to motion (B, P, T, ...), float32 on CPU. Raises as ``encode``."""
        raise ValueError(f"decode: expected a system with latents, got {self.config.system}")

    def denoise_once(self, motion: Tensor, level: float, *, prompt: str = "", seed: int = 0) -> int:
        """Noise one motion (P, T, ...) to a level of the training schedule and call the denoiser once, to be watched.

        Args:
            level: in [0, 1), share of the schedule; 0 is the least noise.
            prompt: empty for none.
            seed: of the noise.

        Returns:
            The timestep.

        Raises:
            ValueError: the system has no such levels.
        """
        raise ValueError(f"denoise_once: expected a system with noise levels, got {self.config.system}")

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that training never showed, in order, each once."""
        return []

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        num_frames: int = 210,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        scheduler: str | None = None,
        progress: Progress | None = None,
        control: Control | None = None,
        num_persons: int | None = None,
    ) -> PipelineResult:
        """Generate one motion for each prompt.

        Args:
            prompts: one or several descriptions, none empty or longer than the text encoder takes.
            num_frames: length in frames, in [min_frames, max_frames] of the model.
            num_inference_steps: solver steps, by default the system's published number (``ModelConfig.default_steps``).
            guidance_scale: >= 1, 1 for no guidance; by default ``default_guidance``.
            seed: prompt i is drawn with seed + i, whatever else is in the call; in [0, 2**63).
            scheduler: one of ``schedulers``, by default their first.
            progress: called as ``progress(steps_done, steps)``.
            control: what every motion has to keep (``intermoe.control``). A model that was not trained with levels
                keeps what is known by replacement.
            num_persons: 1 to 8, by default as many as the model makes together. More are several such groups beside
                each other (``intermoe.control.persons``), the first of which keeps ``control``.

        Raises:
            ValueError: a value outside its range, named, or a control that the system does not follow.
            TypeError: a length, count or seed that is no integer.

        Warns:
            UserWarning: a prompt has words that training never showed, or what is known is kept by replacement.
        """
        if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Mapping)):
            raise TypeError(f"prompts: expected one text or several, got {prompts!r}")
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        self.check(prompts, num_frames)
        num_frames = check_integer(num_frames, "num_frames")
        asked = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.default_guidance(control) if guidance_scale is None else guidance_scale
        num_inference_steps = self._check_solver(asked, guidance_scale, scheduler)
        seed = check_integer(seed, "seed", low=0, high=2**63 - len(prompts))
        seeds = tuple(seed + i for i in range(len(prompts)))
        if control is not None:
            self.check_control(control, num_frames)
        persons = check_persons(
            self.representation.persons if num_persons is None else num_persons, self.representation
        )
        self._warn(prompts, control is not None and bool(control.known))
        reacts = self.trained_with_levels and "known" in self.controls
        groups, done = count_groups(persons, self.representation, len(prompts), reacts=reacts), 0

        def make(which: Sequence[int], seeds: Sequence[int], control: Control | None) -> list[Tensor]:
            nonlocal done
            before, done = done, done + 1
            told = progress
            if progress is not None and groups > 1:

                def told(step: int, steps: int) -> None:
                    progress(before * steps + step, groups * steps)

            return self.sample(
                tuple(prompts[index] for index in which),
                [num_frames] * len(which),
                tuple(seeds),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                scheduler=scheduler,
                control=control,
                progress=told,
            )

        with own_ways(self.device):
            motion = torch.stack(crowd(make, self.representation, seeds, persons, control, reacts=reacts))
            joints = self.representation.joints(motion).contiguous()
        return PipelineResult(joints, motion, prompts, seeds, self.config.fps)

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """Raise ``ValueError`` for what ``__call__`` would refuse, before any work."""
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(f"prompts: expected text, got {prompt!r}")
            if not prompt.strip():
                raise ValueError(f"prompts: expected words in every prompt, got {prompt!r}")
        check_prompts(prompts)
        low, high = self.config.min_frames, self.config.max_frames
        num_frames = check_integer(num_frames, "num_frames")
        if not low <= num_frames <= high:
            raise ValueError(f"num_frames: expected a value in [{low}, {high}] for this model, got {num_frames}")

    def check_control(self, control: Control, num_frames: int) -> None:
        """Raise ``ValueError`` for a control that ``__call__`` would refuse, before any work."""
        if not isinstance(control, Control):
            raise TypeError(f"control: expected a Control, got {control!r}")
        if control.known and not {"known", "reaction"} & {*self.controls}:
            raise ValueError(f"control: expected a system that keeps what is known, got {self.config.system}")
        if control.aims and "targets" not in self.controls:
            raise ValueError(f"control: expected a system that can be led to targets, got {self.config.system}")
        given = control.place(self.representation, num_frames, self.representation.persons)
        if control.known and "known" not in self.controls:
            counts = given.where.sum(dim=1).tolist()
            if sorted(counts)[-2:] not in ([0, num_frames], [num_frames]):
                expected = f"all {num_frames} frames of one person for {self.config.system}"
                raise ValueError(f"control: expected {expected}, got {counts} of each")

    def default_guidance(self, control: Control | None = None) -> float:
        """The system's published guidance scale; 1 where a model trained with levels is given persons or frames.

        What is given tells more than the prompt does, and guidance leads away from it towards any motion of these words
        (`intermoe evaluate control` with `--guidance` tells by how much).
        """
        given = isinstance(control, Control) and bool(control.known) and self.trained_with_levels
        return 1.0 if given else self.config.default_guidance

    @torch.no_grad()
    def timeline(
        self,
        segments: Segments,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        seed: int = 0,
        scheduler: str | None = None,
        progress: Progress | None = None,
        resampling: int = RESAMPLING,
    ) -> PipelineResult:
        """One scene of several prompts, as long as they are together.

        It is made window by window, each of which begins with the last frames of the one before (``OVERLAP`` of
        ``intermoe.control.scene``): what that costs in memory does not depend on the length.

        Args:
            segments: prompts, each with its number of frames. Of the first min_frames at least; what is longer than
                max_frames is made in several windows.
            num_inference_steps: solver steps of each window.
            guidance_scale: by default the system's published one.
            seed: of the first window; each later one has the next.
            progress: called as ``progress(steps_done, steps)``, of all windows.
            resampling: see ``Control``.

        Returns:
            One motion, with the prompts in order as one.

        Raises:
            ValueError, TypeError: as ``__call__``; a system that cannot go on from given frames is named.

        Warns:
            UserWarning: as ``__call__``.
        """
        segments = check_segments(segments)
        prompts = [prompt for prompt, _ in segments]
        self.check(prompts, min(segments[0][1], self.config.max_frames))
        done, later = 0, self.config.max_frames - OVERLAP
        steps = num_inference_steps * count_windows(segments, self.config.max_frames, later)

        def advance(step: int, of: int) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, steps)

        scene = self._scene(seed, num_inference_steps, guidance_scale, scheduler, advance, resampling)
        self._warn(prompts, True)
        with own_ways(self.device):
            motion = torch.cat(list(windows(scene, segments)), dim=1)[None]
            joints = self.representation.joints(motion).contiguous()
        return PipelineResult(joints, motion, ("; ".join(prompts),), (seed,), self.config.fps)

    def live(
        self,
        prompt: str,
        seed: int = 0,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        chunk: int = CHUNK,
        resampling: int = 1,
    ) -> Live:
        """Motion without end while it is made; ``send`` of what is returned changes the prompt, ``aim`` leads joints.

        Args:
            prompt, seed, num_inference_steps, guidance_scale, scheduler, resampling: as ``timeline``, for each chunk.
            chunk: frames that are decided together: fewer answer a prompt sooner, and cost more a second.

        Raises:
            ValueError, TypeError: as ``timeline``.

        Warns:
            UserWarning: as ``__call__``.
        """
        low, high = self.config.min_frames, self.config.max_frames - OVERLAP
        chunk = check_integer(chunk, "chunk", low=low, high=high)
        self.check([prompt], low)
        scene = self._scene(seed, num_inference_steps, guidance_scale, scheduler, None, resampling)
        self._warn([prompt], True)
        return Live(
            scene,
            lambda words: self.check([words], low),
            prompt,
            chunk,
            led="targets" in self.controls,
            surroundings=lambda: own_ways(self.device),
        )

    def _scene(
        self,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float | None,
        scheduler: str | None,
        progress: Progress | None,
        resampling: int,
    ) -> Scene:
        if "known" not in self.controls:
            raise ValueError(f"scene: expected a system that goes on from given frames, got {self.config.system}")
        if self.config.max_frames < 2 * OVERLAP:
            raise ValueError(f"scene: expected max_frames >= {2 * OVERLAP} of the model, got {self.config.max_frames}")
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        num_inference_steps = self._check_solver(num_inference_steps, guidance, scheduler)

        @torch.no_grad()
        def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
            (motion,) = self.sample(
                [prompt],
                [frames],
                [seed],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance,
                scheduler=scheduler,
                control=control,
                progress=progress,
            )
            return motion

        return Scene(
            self.representation,
            window,
            seed=check_integer(seed, "seed", low=0, high=MAX_SEED),
            resampling=check_resampling(resampling),
            min_frames=self.config.min_frames,
            max_frames=self.config.max_frames,
        )

    def _check_solver(self, steps: int, guidance_scale: float, scheduler: str | None) -> int:
        """``steps`` as an ``int``. Raises for what no sampler of the model takes, before any work."""
        steps = check_integer(steps, "num_inference_steps")
        self.config.check_steps(steps)
        check_guidance(guidance_scale)
        if scheduler is not None and scheduler not in self.schedulers:
            raise ValueError(f"scheduler: expected one of {self.schedulers}, got {scheduler!r}")
        return steps

    def _warn(self, prompts: Sequence[str], controlled: bool) -> None:
        for prompt in dict.fromkeys(prompts):
            if unknown := self.unknown_words(prompt):
                listed = ", ".join(unknown)
                warnings.warn(f"the model has never seen: {listed} (in {prompt!r}); it can only guess", stacklevel=4)
        if controlled and "known" in self.controls and not self.trained_with_levels:
            warnings.warn(f"control: model {self.config.name!r} {UNTRAINED}", stacklevel=4)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts to a device, and their weights to a floating-point dtype; ``None`` leaves either.

        In a half type every network computes in it; noise is drawn, solver steps on the CPU are taken and motion is
        returned in float32, and what must stay in float32 does.

        Raises:
            TypeError: ``dtype`` is none of float16, bfloat16, float32 and float64. ValueError: ``device`` is none of
                this machine that holds numbers.
        """
        if dtype is not None:
            check_weight_dtype(dtype, "torch_dtype")
        try:
            if torch.empty(0, device=device).is_meta:
                raise RuntimeError("it holds no numbers")
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device: expected a device of this machine, got {device!r}: {error}") from error
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(
            parameter.dtype
            for module in self.modules.values()
            for parameter in module.parameters()
            if parameter.is_floating_point()
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(parameter.device for module in self.modules.values() for parameter in module.parameters())


def _in_evaluation(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(self: MotionPipeline, *args: Any, **options: Any) -> Any:
        with evaluating(self.modules.values()):
            return method(self, *args, **options)

    return called


def check_level(level: float) -> float:
    """``level`` of a schedule as a ``float``. Raises ``ValueError`` for one that is not in [0, 1)."""
    if not 0 <= (number := check_number(level, "level")) < 1:
        raise ValueError(f"level: expected a value in [0, 1), got {level}")
    return number


def check_batch(prompts: Sequence[str], lengths: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``sample`` was given as many of each, and lengths of at least a frame."""
    if not len(prompts) == len(lengths) == len(seeds):
        raise ValueError(f"lengths, seeds: expected {len(prompts)} of each, got {len(lengths)} and {len(seeds)}")
    if not prompts or min(lengths) < 1:
        raise ValueError(f"lengths: expected at least one, each >= 1, got {list(lengths)}")
