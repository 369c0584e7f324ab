"""The routing of one input through all layers and steps of a pipeline, kept as arrays.

``trace_generation`` and ``trace_motion`` record it; pictures of a ``RoutingTrace`` are in ``intermoe.routing.picture``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from intermoe.files import write_arrays
from intermoe.reading import read_archive
from intermoe.routing.record import Bools, RoutingRecord, record_routing

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline


@dataclass(frozen=True)
class RoutingTrace:
    """The routing of one input through N calls of L layers: P persons (1 for other models), T tokens each, E experts.

    Attributes:
        chosen: (N, L, P, T, E) bool, whether an expert took a token.
        timesteps: (N,) int64, the noise level of each call in the training schedule; zeros for other models.
        layers: names of the L blocks.
        joints: (P, frames, 22, 3) float32, the motion in metres, or ``None``.
        title: what was generated.
        fps: frames of ``joints`` a second.
    """

    chosen: Bools
    timesteps: npt.NDArray[np.int64]
    layers: tuple[str, ...]
    joints: npt.NDArray[np.float32] | None = None
    title: str = ""
    fps: int = 30

    def __post_init__(self) -> None:
        if self.chosen.ndim != 5 or self.chosen.dtype != np.bool_ or 0 in self.chosen.shape:
            raise ValueError(f"chosen: expected bool (N, L, P, T, E), got {self.chosen.dtype} {self.chosen.shape}")
        calls, layers, persons = self.chosen.shape[:3]
        if self.timesteps.shape != (calls,) or self.timesteps.dtype.kind not in "iu":
            got = f"{self.timesteps.dtype} {self.timesteps.shape}"
            raise ValueError(f"timesteps: expected integers of shape ({calls},), got {got}")
        if len(self.layers) != layers:
            raise ValueError(f"layers: expected {layers} names, got {len(self.layers)}")
        if self.joints is not None and (self.joints.ndim != 4 or self.joints.shape[0] != persons):
            raise ValueError(f"joints: expected shape ({persons}, frames, 22, 3), got {self.joints.shape}")

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """(L, P, T, E): share of the calls in which an expert took a token, from 0 to 1."""
        return self.chosen.mean(axis=0)

    @property
    def experts_per_token(self) -> npt.NDArray[np.float64]:
        """(N, L): experts that a token took on average."""
        return self.chosen.sum(axis=-1).mean(axis=(2, 3))

    @property
    def load(self) -> npt.NDArray[np.float64]:
        """(L, E): share of all tokens that an expert took, from 0 to 1."""
        return self.chosen.mean(axis=(0, 2, 3))

    def save_npz(self, path: str | Path) -> None:
        """Write everything and the three summaries; ``np.load`` and ``read_trace`` read it without pickle."""
        optional: dict[str, Any] = {} if self.joints is None else {"joints": self.joints}
        arrays = {
            "chosen": self.chosen,
            "timesteps": self.timesteps,
            "layers": np.array(self.layers),
            "title": self.title,
            "fps": self.fps,
            "share": self.share.astype(np.float32),
            "experts_per_token": self.experts_per_token.astype(np.float32),
            "load": self.load.astype(np.float32),
        }
        write_arrays(path, arrays | optional)


def read_trace(path: str | Path) -> RoutingTrace | None:
    """What ``RoutingTrace.save_npz`` wrote, or ``None`` for a file of something else.

    Raises:
        ValueError: a broken file, or a trace whose parts do not fit each other; names the file. OSError: no such file.
    """
    entries = read_archive(path)
    if not {"chosen", "timesteps", "layers"} <= entries.keys():
        return None
    try:
        return RoutingTrace(
            entries["chosen"],
            entries["timesteps"],
            tuple(str(name) for name in entries["layers"].ravel()),
            entries.get("joints"),
            str(entries.get("title", "")),
            int(entries.get("fps", 30)),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def trace_record(
    record: RoutingRecord, *, row: int = 0, persons: int = 1, layers: str = "*", title: str = ""
) -> RoutingTrace:
    """The trace of row ``row`` of the recorded batches, whose tokens are those of ``persons`` persons one by one.

    ``layers`` is a pattern of names: blocks that see different tokens, as a joint transformer's, go into traces apart.

    Raises:
        ValueError: as ``RoutingRecord.stacked``, no such row, or tokens that cannot be shared by ``persons``.
    """
    names, chosen = record.names(layers), record.stacked(layers)
    calls, depth, batch, tokens, experts = chosen.shape
    if not 0 <= row < batch:
        raise ValueError(f"row: expected a value in [0, {batch}), got {row}")
    if tokens % persons:
        raise ValueError(f"persons: expected a divisor of the {tokens} tokens of a row, got {persons}")
    own = chosen[:, :, row].reshape(calls, depth, persons, tokens // persons, experts)
    return RoutingTrace(own, np.zeros(calls, dtype=np.int64), tuple(names), title=title)


def trace_generation(
    pipeline: MotionPipeline,
    prompt: str,
    *,
    num_frames: int,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RoutingTrace:
    """Generate a motion and record the routing of its conditional half in every denoising step.

    The motion is the one that the pipeline generates with these arguments; they are checked as there.

    Raises:
        ValueError: a system without a denoiser of experts, or as the pipeline.
    """
    timesteps: list[int] = []
    denoiser = denoiser_of(pipeline)
    with record_routing(denoiser) as record, watched_timesteps(denoiser, timesteps):
        result = pipeline(prompt, num_frames, num_inference_steps, guidance_scale, seed, progress=progress)
    for calls in record.calls.values():
        calls[:] = [call[:1] for call in calls]  # guided calls hold the unconditional half too
    joints = result.joints[0].numpy()
    chosen = trace_record(record, persons=len(joints)).chosen
    return RoutingTrace(chosen, np.array(timesteps), _layer_names(record), joints, prompt, result.fps)


def trace_motion(
    pipeline: MotionPipeline,
    motion: torch.Tensor,
    *,
    level: float,
    prompt: str = "",
    seed: int = 0,
) -> RoutingTrace:
    """Record how one motion is routed when it is noised to a level of the training schedule.

    Args:
        motion: (P, T, width) as a dataset gives it, at least one group of the autoencoder's frames; what is beyond
            whole groups is left out.
        level: in [0, 1), share of the schedule; 0 is the least noise.
        prompt: condition of the denoiser; empty for none.
        seed: of the noise.

    Raises:
        ValueError: a system without a denoiser of experts, a level out of range or a motion that is too short.
    """
    denoiser = denoiser_of(pipeline)
    group = pipeline.frame_multiple
    if not 0 <= level < 1:
        raise ValueError(f"level: expected a value in [0, 1), got {level}")
    if motion.ndim < 3 or motion.shape[1] < group:
        raise ValueError(f"motion: expected shape (P, T >= {group}, width), got {tuple(motion.shape)}")
    motion = motion[:, : motion.shape[1] // group * group]
    with record_routing(denoiser) as record:
        timestep = pipeline.denoise_once(motion, level, prompt=prompt, seed=seed)
    joints = pipeline.representation.joints(motion.float().cpu()).contiguous().numpy()
    chosen = trace_record(record, persons=len(joints)).chosen
    title = prompt or "no text"
    return RoutingTrace(chosen, np.array([timestep]), _layer_names(record), joints, title, pipeline.config.fps)


def denoiser_of(pipeline: MotionPipeline) -> nn.Module:
    """The part of a pipeline whose experts are watched. Raises ``ValueError`` for a system without one."""
    denoiser = pipeline.modules.get("denoiser")
    if denoiser is None:
        raise ValueError(f"pipeline: expected a system with a denoiser of experts, got {pipeline.config.system}")
    return denoiser


def _layer_names(record: RoutingRecord) -> tuple[str, ...]:
    return tuple(f"layer {number}" for number in range(1, len(record.calls) + 1))


@contextmanager
def watched_timesteps(denoiser: nn.Module, seen: list[int]) -> Iterator[None]:
    """Append the timestep of the first row of every call of ``denoiser`` to ``seen``."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(int(args[1][0]))

    handle = denoiser.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
