"""The recurrent evaluators of HumanML3D (Guo et al. 2022) and Inter-X (Xu et al. 2024).

Motion: two strided convolutions (4 frames to one movement) -> bidirectional GRU. Text: word vector + embedded part of
speech -> bidirectional GRU. Both end in Linear, LayerNorm, LeakyReLU, Linear; embeddings are not normalised.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from intermoe.config import Config, _require, check_sizes
from intermoe.evaluators.evaluator import Evaluator
from intermoe.evaluators.words import CATEGORIES, END, START, UNKNOWN, encode
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.text.protocol import pad_token_ids

UNIT = 4
"""Frames of one movement."""


@dataclass(frozen=True)
class BiGRUConfig(Config):
    """Sizes of ``BiGRUEvaluator``; the defaults are the published ones of HumanML3D, but for the vocabulary."""

    RENAMED: ClassVar[dict[str, str]] = {"layout": "representation"}

    representation: str = "humanml3d"
    input_dim: int = 259
    max_frames: int = 196
    max_words: int = 20
    vocab_size: int = 1
    word_dim: int = 300
    movement_dim: int = 512
    motion_dim: int = 1024
    text_dim: int = 512
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        known = self.representation in REPRESENTATIONS
        _require(known, "representation", f"one of {tuple(REPRESENTATIONS)}", self.representation)
        sizes = ("input_dim", "max_words", "vocab_size", "word_dim", "movement_dim", "motion_dim", "text_dim")
        check_sizes(self, (*sizes, "embedding_dim"))
        _require(self.max_frames >= UNIT, "max_frames", f">= {UNIT}", self.max_frames)


class Recurrent(nn.Module):
    """Linear -> bidirectional GRU with a learned start -> its last states -> Linear, LayerNorm, LeakyReLU, Linear."""

    def __init__(self, input_dim: int, dim: int, output_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_dim, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.start = nn.Parameter(torch.randn(2, 1, dim))
        self.head = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.LayerNorm(dim), nn.LeakyReLU(0.2), nn.Linear(dim, output_dim)
        )

    def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """sequence (B, T, input_dim), lengths (B,) in [1, T] -> (B, output_dim)."""
        packed = pack_padded_sequence(self.input(sequence), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed, self.start.repeat(1, len(sequence), 1))
        embedded: Tensor = self.head(torch.cat([last[0], last[1]], dim=-1))
        return embedded


class BiGRUEvaluator(Evaluator):
    """The evaluator with its word vectors.

    Its motion is cut to ``max_frames`` and to whole units of 4 frames, and padded with zeros to ``max_frames`` as in
    training, which the convolutions see at the end of shorter motion. Inter-X: rotations (6D) of all joints, then the
    root's position, joint by joint with both persons side by side.

    Args:
        config: sizes.
        words: JSON list of the ``vocab_size`` words, in the order of the vectors.
    """

    kind = "bigru"
    config_type = BiGRUConfig
    reads_tokens = True
    config: BiGRUConfig
    mean: Tensor
    std: Tensor
    vectors: Tensor

    def __init__(self, config: BiGRUConfig, words: str | None) -> None:
        super().__init__()
        try:
            listed = json.loads(words) if words is not None else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"words: expected a JSON list of words: {error}") from error
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise ValueError("words: expected a JSON list of words, got something else")
        if len(set(listed)) != config.vocab_size or not {START, END, UNKNOWN} <= set(listed):
            known = f"{START}, {END} and {UNKNOWN}"
            raise ValueError(
                f"words: expected vocab_size={config.vocab_size} different words with {known}, got {len(set(listed))}"
            )
        self.config = config
        self.representation = config.representation
        self.tokenizer_json = words
        self._index = {word: number for number, word in enumerate(listed)}
        self.register_buffer("mean", torch.zeros(config.input_dim))
        self.register_buffer("std", torch.ones(config.input_dim))
        self.register_buffer("vectors", torch.zeros(config.vocab_size, config.word_dim))
        self.category = nn.Linear(len(CATEGORIES), config.word_dim)
        self.text = Recurrent(config.word_dim, config.text_dim, config.embedding_dim)
        self.conv1 = nn.Conv1d(config.input_dim, config.movement_dim, 4, 2, 1)
        self.conv2 = nn.Conv1d(config.movement_dim, config.movement_dim, 4, 2, 1)
        self.movement = nn.Linear(config.movement_dim, config.movement_dim)
        self.motion = Recurrent(config.movement_dim, config.motion_dim, config.embedding_dim)

    def embed_motion(self, motion: Tensor, lengths: Tensor) -> Tensor:
        """See ``Evaluator.embed_motion``. Raises ``ValueError`` for motion of less than 4 frames."""
        units = lengths.to(motion.device).clamp(max=self.config.max_frames) // UNIT
        if int(units.min()) < 1:
            raise ValueError(f"lengths: expected >= {UNIT}, got {int(lengths.min())}")
        columns = (self._columns(motion)[:, : self.config.max_frames] - self.mean) / self.std
        valid = torch.arange(columns.shape[1], device=motion.device) < UNIT * units[:, None]
        columns = columns.masked_fill(~valid[..., None], 0.0)
        columns = nn.functional.pad(columns, (0, 0, 0, self.config.max_frames - columns.shape[1]))
        hidden = nn.functional.leaky_relu(self.conv1(columns.transpose(1, 2)), 0.2)
        hidden = nn.functional.leaky_relu(self.conv2(hidden), 0.2)
        embedded: Tensor = self.motion(self.movement(hidden.transpose(1, 2)), units)
        return embedded

    def check_text(self, texts: Sequence[str]) -> None:
        """See ``Evaluator.check_text``."""
        for text in texts:
            encode(text, self._index, self.config.max_words)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as ``word/POS word/POS ...``; see ``Evaluator.embed_text`` and ``intermoe.evaluators.words``."""
        rows = [encode(text, self._index, self.config.max_words) for text in texts]
        words, mask = pad_token_ids([row for row, _ in rows], self.device)
        categories, _ = pad_token_ids([row for _, row in rows], self.device)
        one_hot = nn.functional.one_hot(categories, len(CATEGORIES)).to(self.vectors.dtype)
        embedded: Tensor = self.text(self.vectors[words] + self.category(one_hot), mask.sum(1))
        return embedded

    def _columns(self, motion: Tensor) -> Tensor:
        if len(REPRESENTATIONS[self.representation].frame_shape) == 1:  # one person's columns but the contacts
            width = self.config.input_dim + 4
            if motion.dim() != 4 or (motion.shape[1], motion.shape[3]) != (1, width):
                raise ValueError(f"motion: expected (B, 1, T, {width}), got {tuple(motion.shape)}")
            return motion[:, 0, :, : self.config.input_dim]
        joints = self.config.input_dim // 12 - 1
        if motion.dim() != 5 or (motion.shape[1], *motion.shape[3:]) != (2, joints, 12):
            raise ValueError(f"motion: expected (B, 2, T, {joints}, 12), got {tuple(motion.shape)}")
        place = nn.functional.pad(motion[..., :1, :3], (0, 3))
        parts = torch.cat([motion[..., 6:], place], dim=3)
        return rearrange(parts, "b p t j c -> b t (j p c)")
