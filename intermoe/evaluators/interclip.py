"""InterCLIP, the evaluator of InterHuman (InterGen, Liang et al. 2024): a transformer for each side, one space.

embedding = scale * out / |out|; trained (``intermoe.train.evaluator``) so that within a batch every motion finds its
own description and the other way round: the mean of both cross-entropies of scale^2 * cosine similarities (Radford et
al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.config import MAX_LAYERS, Config, _require, check_sizes
from intermoe.evaluators.evaluator import Evaluator
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.nn.layers import sinusoid
from intermoe.text.build import build_text_encoder
from intermoe.text.clip import ClipPrompts, at_end_of_text
from intermoe.text.protocol import TextConfig, TextEncoder, transformer


@dataclass(frozen=True)
class InterClipConfig(Config):
    """Sizes of ``InterClip``; the defaults are the published ones.

    ``input_dim`` is how many leading columns of a person's frame are read: on InterHuman all but the foot contacts.
    ``scale`` is where the learned scale starts. ``text.kind`` "clip" is the published text side, on CLIP's frozen
    token embeddings; any other kind is that encoder of ``intermoe.text.wordpiece``, trained with the rest.
    """

    RENAMED: ClassVar[dict[str, str]] = {"layout": "representation"}

    representation: str = "interhuman"
    persons: int = 2
    input_dim: int = 258
    width: int = 1024
    num_layers: int = 8
    num_heads: int = 8
    feedforward_dim: int = 2048
    embedding_dim: int = 512
    dropout: float = 0.1
    scale: float = 1.0
    text: TextConfig = field(
        default_factory=lambda: TextConfig(
            kind="clip", output_dim=512, width=768, num_layers=8, feedforward_dim=2048, vocab_size=49408
        )
    )

    def __post_init__(self) -> None:
        known = self.representation in REPRESENTATIONS
        _require(known, "representation", f"one of {tuple(REPRESENTATIONS)}", self.representation)
        sizes = ("persons", "input_dim", "width", "num_layers", "num_heads", "feedforward_dim", "embedding_dim")
        check_sizes(self, sizes)
        _require(self.num_layers <= MAX_LAYERS, "num_layers", f"<= {MAX_LAYERS}", self.num_layers)
        _require(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}", self.width)
        _require(self.width % 2 == 0, "width", "an even number (sinusoidal positions)", self.width)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)
        _require(self.scale > 0.0, "scale", "> 0", self.scale)
        expected = f"embedding_dim={self.embedding_dim}"
        _require(self.text.output_dim == self.embedding_dim, "text.output_dim", expected, self.text.output_dim)


class InterClipMotionEncoder(nn.Module):
    """Frames of all persons side by side -> Linear -> query token in front -> post-norm transformer -> LN -> Linear.

    Args:
        config: see ``InterClipConfig``.
    """

    def __init__(self, config: InterClipConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.randn(1, config.width))
        self.embed = nn.Linear(config.persons * config.input_dim, config.width)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.width, config.num_heads, config.feedforward_dim, config.dropout, "gelu", batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.embedding_dim)

    def forward(self, motion: Tensor, lengths: Tensor) -> Tensor:
        """motion (B, P, T, ...), lengths (B,) -> (B, embedding_dim), not normalised."""
        batch, persons, frames = motion.shape[:3]
        columns = motion.flatten(3) if motion.dim() > 3 else motion
        if motion.dim() < 4 or persons != self.config.persons or columns.shape[-1] < self.config.input_dim:
            raise ValueError(
                f"motion: expected (B, {self.config.persons}, T, at least {self.config.input_dim} columns), "
                f"got {tuple(motion.shape)}"
            )
        valid = torch.arange(frames + 1, device=motion.device) <= lengths.to(motion.device)[:, None]
        columns = columns[..., : self.config.input_dim].masked_fill(~valid[:, None, 1:, None], 0.0)
        hidden = torch.cat(
            [self.query.expand(batch, 1, -1), self.embed(rearrange(columns, "b p t c -> b t (p c)"))], dim=1
        )
        hidden = hidden + sinusoid(torch.arange(frames + 1, device=motion.device), self.config.width).to(hidden.dtype)
        hidden = self.transformer(self.dropout(hidden), src_key_padding_mask=~valid)
        embedded: Tensor = self.out(self.norm(hidden[:, 0]))
        return embedded


class InterClipTextEncoder(ClipPrompts):
    """CLIP's embedding of the tokens, frozen -> post-norm transformer -> LN -> state at the end of text -> Linear.

    As published it attends to the padding, so every prompt is padded to ``max_tokens``.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        super().__init__(config, tokenizer_json)
        self.transformer = transformer(config, norm_first=False)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.output_dim)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, max_tokens): (B, output_dim)."""
        states = self.norm(self.transformer(self.embed_tokens(tokens)))
        embedded: Tensor = self.out(at_end_of_text(states, tokens))
        return embedded


class InterClip(Evaluator):
    """The evaluator, published or trained on one's own data.

    Args:
        config: sizes.
        tokenizer_json: of the text encoder; needed for ``text.kind`` "wordpiece".
    """

    kind = "interclip"
    config_type = InterClipConfig
    config: InterClipConfig

    def __init__(self, config: InterClipConfig, tokenizer_json: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.representation = config.representation
        self.motion = InterClipMotionEncoder(config)
        self.text: TextEncoder
        if config.text.kind == "clip":
            self.text = InterClipTextEncoder(config.text, tokenizer_json)
        else:
            self.text = build_text_encoder(config.text, tokenizer_json)
        self.scale = nn.Parameter(torch.tensor([config.scale]))

    @property
    def tokenizer_json(self) -> str | None:  # type: ignore[override]
        """The text encoder's."""
        return self.text.tokenizer_json

    def embed_motion(self, motion: Tensor, lengths: Tensor) -> Tensor:
        """See ``Evaluator.embed_motion``. All embeddings have the length ``scale``."""
        return self.scale * nn.functional.normalize(self.motion(motion, lengths), dim=-1)

    def check_text(self, texts: Sequence[str]) -> None:
        """See ``Evaluator.check_text``."""
        self.text.check(texts)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """See ``Evaluator.embed_text``."""
        return self.scale * nn.functional.normalize(self.text(texts), dim=-1)
