"""Motion as the latents of a frozen autoencoder, which is how the denoiser sees it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.checkpoints import check_finite, load_safetensors
from intermoe.data.batching import MotionBatch
from intermoe.data.dataset import MotionChoice, MotionDataset
from intermoe.files import write_tensors
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.vae import LatentDistribution

METRIC_FILE = "metric.safetensors"
METRIC_EPOCHS = 4
_DECIMETRES = 10.0
_UNTOLD = 0.03
"""What an estimate may be off by in a direction without a meaning."""
CACHE_BYTES = 2**30
CACHE_SHARE = 1 / 8


class LatentItem(TypedDict):
    """One item: ``posterior`` is float32 (2, P, T', X), mean and log-variance of each latent frame."""

    name: str
    posterior: Tensor
    caption: str


class LatentBatch(TypedDict):
    """``posterior`` (B, 2, P, T', X), zero from ``frames`` (numbers of latent frames) on; ``mask`` (B, T')."""

    names: list[str]
    captions: list[str]
    posterior: Tensor
    mask: Tensor
    frames: list[int]


class LatentEncoder:
    """Posteriors of batches of motion, whatever their padding holds."""

    def __init__(self, codec: LatentCodec) -> None:
        self.codec = codec
        self.downsampling = codec.vae.downsampling

    @torch.no_grad()
    def __call__(self, batch: MotionBatch) -> tuple[LatentDistribution, Tensor]:
        """The posterior, (B, P, T', X) each, and the mask (B, T') of latent frames whose 4 frames are all there.

        The other latent frames are 0. They are encoded from the mean motion: raw zeros, or whatever padding holds, lie
        so far outside the data that a log-variance overflows, and infinity times a mask of 0 is NaN.
        """
        motion, frames = batch["motion"], batch["lengths"] // self.downsampling
        mask = torch.arange(int(frames.max()), device=motion.device) < frames[:, None]
        motion = motion[:, :, : self.downsampling * mask.shape[1]]
        whole = mask.repeat_interleave(self.downsampling, dim=1)
        mean = torch.tensor(self.codec.statistics.mean).to(motion)
        motion = torch.where(whole.view(len(whole), 1, -1, *[1] * (motion.dim() - 3)), motion, mean)
        return without_padding(self.codec.encode(motion), mask), mask

    def posterior(self, motion: Tensor) -> LatentDistribution:
        """The posterior, (1, P, T', X) each, of the whole groups of 4 frames of one motion (P, T, ...)."""
        return self.codec.encode(motion[None, :, : motion.shape[1] // self.downsampling * self.downsampling])


def without_padding(posterior: LatentDistribution, mask: Tensor) -> LatentDistribution:
    """The posterior, (B, P, T', X) each, with 0 where ``mask`` (B, T') is False, whatever was there."""
    padding = ~mask[:, None, :, None]
    return LatentDistribution(posterior.mean.masked_fill(padding, 0.0), posterior.log_var.masked_fill(padding, 0.0))


class LatentDataset:
    """``dataset`` with its motion encoded, item by item, on ``device``.

    Conversion and encoding take longer than a training step of a small denoiser, so posteriors are kept: of equal
    choices (``MotionDataset.choose``) only the first is converted and encoded, and alone, because rounding depends on
    the rest of a batch and a resumed run must find the same numbers. On the CPU up to ``CACHE_BYTES`` are kept, on
    another device ``CACHE_SHARE`` of the memory that is free at the start.
    """

    def __init__(self, dataset: MotionDataset, encoder: LatentEncoder, device: torch.device) -> None:
        self.dataset, self.encoder, self.device = dataset, encoder, device
        self.kept: dict[MotionChoice, Tensor] = {}
        self.free = CACHE_BYTES
        if device.type == "cuda":
            self.free = int(CACHE_SHARE * torch.cuda.mem_get_info(device)[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def num_frames(self, index: int) -> int:
        """Length of item ``index`` in frames of motion."""
        return self.dataset.num_frames(index)

    def draw(self, index: int, epoch: int) -> LatentItem:
        """``MotionDataset.draw``, encoded."""
        choice, caption = self.dataset.choose(index, epoch)
        return {"name": self.dataset.names[index], "posterior": self._posterior(choice), "caption": caption}

    def _posterior(self, choice: MotionChoice) -> Tensor:
        if choice in self.kept:
            return self.kept[choice]
        encoded = self.encoder.posterior(self.dataset.motion(choice).to(self.device))
        posterior = torch.stack([encoded.mean[0], encoded.log_var[0]])
        if posterior.nbytes <= self.free:
            self.free -= posterior.nbytes
            self.kept[choice] = posterior
        return posterior


def first_motions(train: MotionDataset) -> Iterator[Tensor]:
    """What each item is drawn as in the first epochs, mirrored or not, and other windows of long ones."""
    draws = itertools.product(range(len(train)), range(METRIC_EPOCHS))
    for choice in dict.fromkeys(train.choose(index, epoch)[0] for index, epoch in draws):
        yield train.motion(choice)


def write_metric(std_floor: float, train: MotionDataset, encoder: LatentEncoder, path: Path) -> None:
    """Write ``error_metric`` of the latents of ``first_motions`` as ``metric``."""
    latents = torch.cat([encoder.posterior(motion).mean.flatten(0, 2) for motion in first_motions(train)])
    write_tensors(path, {"metric": error_metric(latents, std_floor)})


def read_fitted(path: Path, key: str) -> Tensor:
    """What ``write_metric`` or its like wrote. Raises ``ValueError`` that names the file where it is not there."""
    tensors = load_safetensors(path)
    if key not in tensors:
        raise ValueError(f"{path}: missing key {key!r}")
    check_finite(tensors[key], key, path)
    return tensors[key]


def error_metric(latents: Tensor, std_floor: float) -> Tensor:
    """M (X, X), float32, of latents (N, X): |e M|^2 weighs an error along principal axis k by c / max(std_k, floor).

    A few directions, where the persons are and go, hold most of an autoencoder's variance, and a plain error hears of
    little else. Divided by their variances all would count alike, noise included; the root lies between. The scale c
    keeps the expected square of ``latents`` minus their mean.

    Raises:
        ValueError: a floor that is not positive.
    """
    if not std_floor > 0:
        raise ValueError(f"std_floor: expected > 0, got {std_floor}")
    centred = latents.double() - latents.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(latents))
    variances = variances.clamp(min=0)
    weights = 1 / variances.sqrt().clamp(min=std_floor)
    weights = weights * variances.sum() / (weights * variances).sum()
    return (directions * weights.sqrt()).float().contiguous()


def position_map(latents: Tensor, positions: Tensor) -> Tensor:
    """A (X, Y), float32: what an error (N, X) of latents moves positions (N, Y) by, in decimetres.

    The ridge regression of positions, in metres, on ``latents``, with errors of ``_UNTOLD`` in each: an autoencoder
    that keeps where the joints are does so nearly linearly, and directions in which latents hardly vary would get
    coefficients that make of their noise metres.
    """
    centred = latents.double() - latents.double().mean(dim=0)
    wanted = positions.double() - positions.double().mean(dim=0)
    products = centred.T @ centred / len(latents) + _UNTOLD**2 * torch.eye(latents.shape[1], dtype=torch.float64)
    return (_DECIMETRES * torch.linalg.solve(products, centred.T @ wanted / len(latents))).float().contiguous()


def collate_latents(items: Sequence[LatentItem]) -> LatentBatch:
    """Zero-pad to the longest item."""
    rows = [item["posterior"] for item in items]
    frames = [row.shape[2] for row in rows]
    mask = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    return {
        "names": [item["name"] for item in items],
        "captions": [item["caption"] for item in items],
        "posterior": torch.stack([F.pad(row, (0, 0, 0, max(frames) - row.shape[2])) for row in rows]),
        "mask": mask.to(rows[0].device, non_blocking=True),
        "frames": frames,
    }
