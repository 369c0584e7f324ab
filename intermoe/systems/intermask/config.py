"""Sizes of InterMask's tokeniser and of its masked transformer; the configuration of a model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from intermoe.config import Config, _require
from intermoe.pipeline import ModelConfig
from intermoe.text.protocol import TextConfig

MESSAGES = ("every_frame", "first_frame", "first_frame_of_batch", "none")
REPRESENTATIONS = ("interhuman", "interx")
MIN_STEPS = 2
"""Rounds of unmasking: one to hide again what is least sure, and one more."""


@dataclass(frozen=True)
class TokenizerConfig(Config):
    """The tokeniser. ``representation`` fixes the image that a motion is seen as (``intermask.tokenizer.IMAGES``).

    ``messages`` says which frames' joints hear of their neighbours in the graph layers (of ``interhuman`` alone):
    ``every_frame`` is the method. The published code stacks all frames of a batch as nodes of one graph that has the
    edges of a single frame, so its checkpoints were trained on messages in the first frame of the first motion of a
    batch alone: ``first_frame_of_batch`` is that, ``first_frame`` gives every motion what it would get in a batch of
    its own, ``none`` drops the messages. ``temperature`` is that of the draw of codes in training.
    """

    representation: str = "interhuman"
    num_codes: int = 1024
    code_dim: int = 512
    width: int = 512
    num_blocks: int = 2
    dilation_growth: int = 3
    dropout: float = 0.2
    messages: str = "every_frame"
    temperature: float = 0.5
    codebook_decay: float = 0.99

    def __post_init__(self) -> None:
        _require(
            self.representation in REPRESENTATIONS, "representation", f"one of {REPRESENTATIONS}", self.representation
        )
        for name in ("num_codes", "code_dim", "width", "num_blocks", "dilation_growth"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)
        _require(self.messages in MESSAGES, "messages", f"one of {MESSAGES}", self.messages)
        _require(self.temperature > 0.0, "temperature", "> 0", self.temperature)
        _require(0.0 <= self.codebook_decay < 1.0, "codebook_decay", "a value in [0, 1)", self.codebook_decay)


@dataclass(frozen=True)
class TokenizerLossConfig(Config):
    """Weights of the terms of ``intermoe.systems.intermask.losses.tokenizer_losses``, as published."""

    reconstruction: float = 1.0
    position: float = 1.0
    velocity: float = 100.0
    bone: float = 5.0
    rotation: float = 0.01
    contact: float = 500.0
    commitment: float = 0.02

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _require(getattr(self, f.name) >= 0.0, f.name, ">= 0", getattr(self, f.name))


@dataclass(frozen=True)
class InterMaskConfig(Config):
    """The masked transformer over the codes of two persons, each a grid of ``num_parts`` rows and a column per step."""

    num_codes: int = 1024
    code_dim: int = 512
    text_dim: int = 768
    dim: int = 384
    num_layers: int = 6
    num_heads: int = 6
    feedforward_dim: int = 1024
    dropout: float = 0.2
    num_parts: int = 5

    def __post_init__(self) -> None:
        for name in ("num_codes", "code_dim", "text_dim", "dim", "num_layers", "num_heads", "feedforward_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.num_parts >= 1, "num_parts", ">= 1", self.num_parts)
        _require(self.dim % self.num_heads == 0, "dim", f"a multiple of num_heads={self.num_heads}", self.dim)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)


@dataclass(frozen=True)
class UnmaskingConfig(Config):
    """Sampling at the published values: rounds, guidance and the share of the likeliest codes that is drawn from."""

    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    keep_share: float = 0.1

    def __post_init__(self) -> None:
        enough = self.num_inference_steps >= MIN_STEPS
        _require(enough, "num_inference_steps", f">= {MIN_STEPS}", self.num_inference_steps)
        _require(1.0 <= self.guidance_scale < math.inf, "guidance_scale", ">= 1 and finite", self.guidance_scale)
        _require(0.0 < self.keep_share <= 1.0, "keep_share", "a value in (0, 1]", self.keep_share)


@dataclass(frozen=True)
class InterMaskModelConfig(ModelConfig):
    """A model of InterMask: its parts, and ``keep_share`` of ``UnmaskingConfig``.

    ``tokenizer.messages`` must not be ``"first_frame_of_batch"``, with which a motion depends on its batch; weights
    that were trained so, the published ones for instance, take ``"first_frame"``.
    """

    system: str = "intermask"
    name: str = "intermask"
    network: InterMaskConfig = field(default_factory=InterMaskConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    keep_share: float = UnmaskingConfig.keep_share

    def __post_init__(self) -> None:
        super().__post_init__()
        network, tokenizer = self.network, self.tokenizer
        expected = f"tokenizer.num_codes={tokenizer.num_codes}"
        _require(network.num_codes == tokenizer.num_codes, "network.num_codes", expected, network.num_codes)
        expected = f"network.text_dim={network.text_dim}"
        _require(self.text.output_dim == network.text_dim, "text.output_dim", expected, self.text.output_dim)
        alone = tokenizer.messages != "first_frame_of_batch"
        _require(alone, "tokenizer.messages", "'first_frame', or another that knows no batch", tokenizer.messages)
        _require(0.0 < self.keep_share <= 1.0, "keep_share", "a value in (0, 1]", self.keep_share)

    @property
    def min_steps(self) -> int:
        """``MIN_STEPS``."""
        return MIN_STEPS

    @property
    def default_steps(self) -> int:
        """Rounds of unmasking."""
        return UnmaskingConfig.num_inference_steps

    @property
    def default_guidance(self) -> float:
        """Guidance of the codes' logits."""
        return UnmaskingConfig.guidance_scale
