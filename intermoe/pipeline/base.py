"""What every model does for its caller, whatever its system: it is loaded, generates, goes on, and is shared."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intermoe.config import check_guidance, check_integer
from intermoe.control.known import RESAMPLING, Control, check_resampling
from intermoe.control.live import CHUNK, STEPS, Live
from intermoe.control.persons import check_persons, count_groups, crowd
from intermoe.control.scene import MAX_SEED, OVERLAP, Scene
from intermoe.control.timeline import Segments, check_segments, window_lengths, windows
from intermoe.hub import CONFIG_FILE, check_upload, model_card, model_folder, upload
from intermoe.pipeline.models import system_of
from intermoe.pipeline.result import PipelineResult
from intermoe.pipeline.surroundings import own_ways
from intermoe.pipeline.system import Progress, System
from intermoe.text.protocol import check_prompts

if TYPE_CHECKING:
    from typing_extensions import Self

UNTRAINED = "was not trained with noise levels of persons and frames: what is known is kept by replacement"


class MotionPipeline(System):
    """A whole model of one system: prompts in, motion of several persons out.

    It works in evaluation mode: parts that a caller has put into ``train()`` are so again afterwards. What differs from
    system to system is told in ``System``, from which this comes.
    """

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
        done, steps = 0, num_inference_steps * len(window_lengths(segments, self.config.max_frames))

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
