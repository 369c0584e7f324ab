"""What every text encoder keeps: prompts become one vector each, the text part of a condition.

Importing this module imports neither ``transformers`` nor ``tokenizers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from intermoe.config import MAX_LAYERS, Config, _require, check_sizes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_ENCODERS = ("wordpiece", "sentence", "huggingface", "clip", "clip_pooled")


@dataclass(frozen=True)
class TextConfig(Config):
    """Text encoder. ``kind`` chooses; the other fields describe the trainable part of that kind.

    - ``wordpiece``: own small transformer over word pieces; ``width``, ``num_layers``, ``num_heads``, ``vocab_size``,
      ``max_tokens`` describe it, ``output_dim`` its output.
    - ``sentence``: the sentence encoder ``name_or_path``, of ``sentence_layers`` layers of ``sentence_heads`` heads and
      width ``vector_dim``, which training packs into the model, with a head that the rest describes.
    - ``huggingface``: ``name_or_path`` is a frozen encoder, the rest describes the adapter on its token states.
    - ``clip``: the release's CLIP tower and adapter; ``clip_*`` describe the tower, the rest the adapter.
    - ``clip_pooled``: CLIP's own embedding of a text, frozen; ``width`` and ``clip_*`` describe the tower,
      ``output_dim`` its projection.
    """

    kind: str = "wordpiece"
    output_dim: int = 768
    width: int = 768
    num_layers: int = 2
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    max_tokens: int = 77
    vocab_size: int = 2000
    vector_dim: int = 384
    name_or_path: str | None = None
    clip_layers: int = 12
    clip_heads: int = 12
    sentence_layers: int = 6
    sentence_heads: int = 12

    def __post_init__(self) -> None:
        _require(self.kind in TEXT_ENCODERS, "kind", f"one of {TEXT_ENCODERS}", self.kind)
        sizes = ("output_dim", "width", "num_layers", "num_heads", "feedforward_dim", "max_tokens", "vocab_size")
        check_sizes(self, (*sizes, "vector_dim", "clip_layers", "clip_heads", "sentence_layers", "sentence_heads"))
        for name in ("num_layers", "clip_layers", "sentence_layers"):
            _require(getattr(self, name) <= MAX_LAYERS, name, f"<= {MAX_LAYERS}", getattr(self, name))
        _require(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}", self.width)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)
        if self.kind in ("huggingface", "sentence"):
            _require(bool(self.name_or_path), "name_or_path", "a model name or folder", self.name_or_path)


class TextEncoder(nn.Module, ABC):
    """Protocol of all text encoders.

    ``output_dim`` is the width of the condition. ``tokenizer_json`` is the content of the ``tokenizer.json`` to save
    beside the weights, or ``None`` where the tokenizer comes from elsewhere. ``state_dict()`` holds exactly what must
    be saved to rebuild the encoder with ``build_text_encoder``.
    """

    output_dim: int
    tokenizer_json: str | None = None

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts`` (B strings): float32 (B, output_dim), on the device of the weights."""

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ``ValueError`` for what ``forward`` would refuse in ``prompts``, without its work."""
        check_prompts(prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that training never showed to the encoder, in order, each once; pretrained ones: none."""
        return []


class PieceTextEncoder(TextEncoder):
    """A text encoder over tokens of its own, of which a prompt has at most ``config.max_tokens``."""

    config: TextConfig

    @abstractmethod
    def encode(self, prompt: str) -> list[int]:
        """Token ids of ``prompt``, however many, with those that start or end it."""

    def token_ids(self, prompt: str) -> list[int]:
        """``encode``. Raises ``ValueError`` if there are more than ``max_tokens``."""
        ids = self.encode(prompt)
        if len(ids) > self.config.max_tokens:
            raise ValueError(
                f"prompts: expected at most max_tokens={self.config.max_tokens} word pieces, got {len(ids)} "
                f"in {prompt[:60]!r}..."
            )
        return ids

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ``ValueError`` for a prompt that is too long."""
        for prompt in check_prompts(prompts):
            self.token_ids(prompt)


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """``prompts`` as a list.

    Raises:
        TypeError: anything but a sequence of strings. ValueError: no prompt, or one that is no text: with half a
            character (of a terminal that is not in UTF-8) or a NUL.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts: expected a sequence of strings, got {prompts!r}")
    if len(prompts) == 0:
        raise ValueError("prompts: expected at least one prompt, got none")
    for prompt in prompts:
        if "\0" in prompt or not _is_whole(prompt):
            raise ValueError(f"prompts: expected UTF-8 text, got {prompt[:60]!a}")
    return list(prompts)


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that the content of a ``tokenizer.json`` describes. Raises ``ValueError`` if it is malformed."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises a bare Exception for malformed JSON
        raise ValueError(f"tokenizer_json: expected a tokenizer of the tokenizers library: {error}") from error


def pad_token_ids(rows: Sequence[Sequence[int]], device: torch.device, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (B, longest) int64 and their mask, bool with True = a token."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [padding] * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``states`` (B, L, D) over the positions where ``mask`` (B, L) is True: (B, D)."""
    return states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


def transformer(config: TextConfig, *, norm_first: bool) -> nn.TransformerEncoder:
    """The trainable transformer that ``config`` describes: (B, L, width) to (B, L, width)."""
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.num_heads,
        config.feedforward_dim,
        config.dropout,
        "gelu",
        batch_first=True,
        norm_first=norm_first,
    )
    return nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
