"""What a system brings: its networks, how they sample and code motion, and how they are loaded and saved."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from intermoe.checkpoints import check_weight_dtype
from intermoe.config import check_number
from intermoe.control.known import Control
from intermoe.motion.representation import Representation
from intermoe.pipeline.models import ModelConfig
from intermoe.pipeline.surroundings import evaluating

if TYPE_CHECKING:
    from typing_extensions import Self

Progress = Callable[[int, int], None]
CALLS_NETWORKS = ("sample", "encode", "decode", "denoise_once")
"""Methods of a system that call its networks."""


class System(ABC):
    """What ``MotionPipeline`` needs of a system; a new one derives from ``MotionPipeline`` and fills this in.

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
        return type(self).encode is not System.encode

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
    def called(self: System, *args: Any, **options: Any) -> Any:
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
