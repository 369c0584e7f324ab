"""A model of InterMask: a text encoder, a masked transformer and the tokeniser whose codes it unmasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.control.known import Control, Given
from intermoe.hub import CONFIG_FILE, WEIGHTS_FILE
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.ops.checks import check_tensor
from intermoe.pipeline import MotionPipeline, Progress, check_batch
from intermoe.seeds import generator_of
from intermoe.systems.files import read_text_encoder, read_weights, to_be_filled, write_model
from intermoe.systems.intermask.config import InterMaskModelConfig, UnmaskingConfig
from intermoe.systems.intermask.network import PERSONS, InterMask
from intermoe.systems.intermask.sampling import unmask
from intermoe.systems.intermask.tokenizer import DOWNSAMPLING, NUM_PARTS, MotionTokenizer
from intermoe.text.protocol import TextEncoder


def _person(given: Given) -> int:
    """Who is given."""
    return int(given.where.any(dim=1).int().argmax())


class InterMaskPipeline(MotionPipeline):
    """A model of InterMask. Its latents are codes: int64 (B, 2, T / 4, 5).

    Args:
        config: the model's configuration.
        network, tokenizer, text_encoder: its parts.
        statistics: of its motion columns.
    """

    config_type = InterMaskModelConfig
    schedulers = ("unmasking",)
    controls = ("reaction",)
    config: InterMaskModelConfig
    frame_multiple = DOWNSAMPLING

    def __init__(
        self,
        config: InterMaskModelConfig,
        network: InterMask,
        tokenizer: MotionTokenizer,
        text_encoder: TextEncoder,
        statistics: Statistics,
    ) -> None:
        self.config = config
        self.representation = REPRESENTATIONS[config.tokenizer.representation]
        self.network = network.eval()
        self.tokenizer = tokenizer.eval()
        self.text_encoder = text_encoder.eval()
        self.statistics = statistics

    @classmethod
    def load(cls, folder: Path) -> InterMaskPipeline:
        """See ``MotionPipeline.load``."""
        config = InterMaskModelConfig.load(folder / CONFIG_FILE)
        text_encoder = read_text_encoder(folder, config.text)
        with to_be_filled(folder / WEIGHTS_FILE):
            network, tokenizer = InterMask(config.network), MotionTokenizer(config.tokenizer)
        parts = {"network": network, "tokenizer": tokenizer, "text": text_encoder}
        columns = REPRESENTATIONS[config.tokenizer.representation].frame_shape[-1]
        return cls(config, network, tokenizer, text_encoder, read_weights(folder, parts, columns=columns))

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """See ``MotionPipeline.save_pretrained``."""
        write_model(folder, self.config, self.modules, self.statistics, self.text_encoder.tokenizer_json, dtype)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Masked transformer, tokeniser and text encoder."""
        return {"network": self.network, "tokenizer": self.tokenizer, "text": self.text_encoder}

    @torch.no_grad()
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
        """See ``MotionPipeline.sample``; steps are rounds of unmasking, of which the paper has 20, guided by 2.

        A reaction takes half as many.
        """
        check_batch(prompts, lengths, seeds)
        if control is not None:
            self.check_control(control, max(lengths))
        if scheduler is not None and scheduler not in self.schedulers:
            raise ValueError(f"scheduler: expected one of {self.schedulers}, got {scheduler!r}")
        counts = [-(-length // DOWNSAMPLING) for length in lengths]
        given = [control.place(self.representation, length, PERSONS) for length in lengths] if control else []
        codes = unmask(
            self.network,
            self.text_encoder(prompts).to(self.dtype),
            (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(self.device),
            UnmaskingConfig(num_inference_steps, guidance_scale, self.config.keep_share),
            known=self._codes(given, counts) if given else None,
            generators=[generator_of(seed) for seed in seeds],
            callback=progress,
        )
        codes = rearrange(codes, "b p part t -> b p t part")
        if given and _person(given[0]) == 1:  # the persons are exchangeable; the network's first is the given one
            codes = codes.flip(1)
        # each alone: the decoder would see the codes of padding
        motions = (self.decode(row[None, :, :count])[0] for row, count in zip(codes, counts, strict=True))
        cut = [motion[:, :length].clone() for motion, length in zip(motions, lengths, strict=True)]
        return [each.paste(motion) for each, motion in zip(given, cut, strict=True)] if given else cut

    def _codes(self, given: Sequence[Given], counts: Sequence[int]) -> Tensor:
        """Codes (B, 5, L) of the person who is given in each motion, padded to the longest."""
        rows = torch.zeros(len(given), NUM_PARTS, max(counts), dtype=torch.long, device=self.device)
        for row, each, count in zip(rows, given, counts, strict=True):
            motion = self.statistics.familiar(each.filled(count * DOWNSAMPLING)[_person(each)])
            row[:, :count] = self.tokenizer.encode(self.statistics.normalise(motion)[None].to(self.device, self.dtype))
        return rows

    @torch.no_grad()
    def encode(self, motion: Tensor) -> Tensor:
        """Motion (B, 2, T, ...), T a multiple of 4, to its codes (B, 2, T / 4, 5) int64."""
        check_tensor("motion", motion, ("B", PERSONS, "T", *self.representation.frame_shape))
        codes = self.tokenizer.encode(self.statistics.normalise(motion).flatten(0, 1).to(self.dtype))
        return rearrange(codes, "(b p) part t -> b p t part", p=PERSONS)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Codes (B, 2, T / 4, 5) to motion (B, 2, T, ...), float32 on CPU."""
        check_tensor("latents", latents, ("B", PERSONS, "T / 4", NUM_PARTS))
        motion = self.tokenizer.decode(rearrange(latents, "b p t part -> (b p) part t")).float().cpu()
        return self.statistics.denormalise(motion).unflatten(0, latents.shape[:2])

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """See ``MotionPipeline.check``."""
        super().check(prompts, num_frames)
        self.text_encoder.check(prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """See ``TextEncoder.unknown_words``."""
        return self.text_encoder.unknown_words(prompt)
