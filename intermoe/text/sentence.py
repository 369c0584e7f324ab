"""A public sentence encoder inside the model's own file, and a small head that is trained: free wording, offline."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from intermoe.text.huggingface import load_frozen, load_tokenizer
from intermoe.text.packed import GROUP, PackedMatrix
from intermoe.text.protocol import (
    PieceTextEncoder,
    TextConfig,
    check_prompts,
    masked_mean,
    pad_token_ids,
    parse_tokenizer,
    transformer,
)

NEAR = 0.5
"""Cosine from which on a word counts as like one that captions have."""
NOISE = 0.5
"""Spread of the noise on a caption's embedding in training, of that of the captions: other wording lands nearby."""
DETAILS_DROPPED = 0.4
"""Share of the captions whose details are left out in training, so that the embedding alone says what it can."""
_PLACEHOLDER = re.compile(r"\[unused\d+\]")
_EPS = 1e-12
_BATCH = 256
_WIDER = 4
_VECTORS = (3, 1, 1, 1, _WIDER, 1, 1, 1)
"""Widths of a layer's vectors: biases of q, k, v and of the output, LayerNorm, biases of up and down, LayerNorm."""

_Item = TypeVar("_Item")


class SentenceTextEncoder(PieceTextEncoder):
    """A frozen BERT-like sentence encoder and a head on its embedding and its token states.

    ``prompt -> frozen token states -> mean, normalised, standardised over the training's captions -> Linear`` gives
    what the caption is about, wherever the sentence encoder hears the same in other words. To it is added what the
    words say in detail (who, left or right): token states -> Linear to ``width`` + learned position -> ``num_layers``
    pre-norm layers -> LayerNorm -> mean over tokens -> Linear. The matrices of the frozen part are kept with four bits
    a weight (``intermoe.text.packed``) in the state, so that nothing else is needed to generate.

    Args:
        config: sizes of the head; ``vocab_size``, ``vector_dim`` (width), ``sentence_layers`` and ``sentence_heads`` of
            the sentence encoder, whose feed-forward layers are four times as wide.
        tokenizer_json: of it.

    Raises:
        ValueError: if the tokenizer is malformed or has more tokens than ``vocab_size``.
    """

    seen: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self.tokenizer_json = tokenizer_json
        self._tokenizer = parse_tokenizer(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        tokens = self._tokenizer.get_vocab_size()
        if tokens > config.vocab_size:
            raise ValueError(f"tokenizer_json: expected at most vocab_size={config.vocab_size} tokens, got {tokens}")
        self.frozen = PackedSentenceEncoder(config)
        self.register_buffer("seen", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(config.vector_dim))
        self.register_buffer("spread", torch.ones(()))
        self.about = nn.Linear(config.vector_dim, config.output_dim)
        self.input = nn.Linear(config.vector_dim, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.transformer = transformer(config, norm_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.output_dim)
        nn.init.normal_(self.position_embedding, std=0.3)
        self._near: tuple[Tensor, Tensor] | None = None

    def take_encoder(self, name_or_path: str, captions: Iterable[str]) -> None:
        """Fill the frozen part from the sentence encoder ``name_or_path``, and note the training's ``captions``.

        Raises:
            ValueError: as ``load_frozen``, or an encoder of other sizes or other word pieces.
        """
        theirs = parse_tokenizer(sentence_encoder_tokenizer(name_or_path)).get_vocab()
        own = self._tokenizer.get_vocab()
        if missing := sorted(own.keys() - theirs.keys()):
            raise ValueError(f"text.name_or_path: expected a sentence encoder with word piece {missing[0]!r}, got none")
        if len(own) != self.config.vocab_size:
            told = f"as many word pieces as the tokenizer has of {name_or_path!r}"
            raise ValueError(f"text.vocab_size: expected {len(own)}, {told}, got {self.config.vocab_size}")
        self.frozen.take(load_frozen(name_or_path), [theirs[piece] for piece in sorted(own, key=own.__getitem__)])
        captions = sorted(set(captions))
        for caption in captions:
            self.seen[[piece for pieces in self._words(caption).values() for piece in pieces]] = True
        embedded = torch.cat([self._embedded(*self._states(part)) for part in _parts(captions, _BATCH)])
        self.mean.copy_(embedded.mean(dim=0))
        self.spread.copy_((embedded - self.mean).square().mean().sqrt().clamp(min=1e-6))
        self._near = None

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt``, lower-cased, that mean nothing like a word of the captions; in order, each once."""
        unknown = []
        for word, pieces in self._words(prompt).items():
            seen = bool(self.seen[pieces].all()) and self._unknown not in pieces
            if not seen and (self._unknown in pieces or self._likeness(pieces) < NEAR):
                unknown.append(word)
        return unknown

    def encode(self, prompt: str) -> list[int]:
        """Ids of the word pieces of ``prompt`` between those that start and end it."""
        ids: list[int] = self._tokenizer.encode(prompt).ids
        return ids

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts``: (B, output_dim) float32. Raises ``ValueError`` for a prompt that is too long."""
        states, mask = self._states(check_prompts(prompts))
        embedded = (self._embedded(states, mask) - self.mean) / self.spread
        if self.training:
            embedded = embedded + NOISE * torch.randn_like(embedded)
        states, embedded = states.to(self.input.weight.dtype), embedded.to(self.about.weight.dtype)
        hidden = self.input(states) + self.position_embedding[: states.shape[1]]
        hidden = self.norm(self.transformer(hidden.masked_fill(~mask[..., None], 0.0), src_key_padding_mask=~mask))
        details = self.output(masked_mean(hidden, mask))
        if self.training:
            details = details * (torch.rand(len(details), 1, device=details.device) >= DETAILS_DROPPED)
        result: Tensor = (self.about(embedded) + details).float()
        return result

    def _states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token states (B, L, D) and their mask (B, L)."""
        ids, mask = pad_token_ids([self.token_ids(prompt) for prompt in prompts], self.mean.device)
        return self.frozen(ids, mask), mask

    def _embedded(self, states: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(masked_mean(states, mask), dim=1)

    @torch.no_grad()
    def _likeness(self, pieces: list[int]) -> float:
        """Cosine between a word and that of the captions' word pieces that is most like it, less what all share."""
        if self._near is None:
            seen = [[piece] for piece in self.seen.nonzero()[:, 0].tolist()]
            known = torch.cat([self._alone(part) for part in _parts(seen, _BATCH)])
            self._near = known.mean(dim=0), F.normalize(known - known.mean(dim=0), dim=1)
        mean, known = self._near
        return float((known @ F.normalize(self._alone([pieces])[0] - mean, dim=0)).max())

    def _alone(self, words: Sequence[list[int]]) -> Tensor:
        """Embeddings of words, each a sentence of its own."""
        start, *_, end = self._tokenizer.encode("a").ids
        ids, mask = pad_token_ids([[start, *pieces, end] for pieces in words], self.mean.device)
        return self._embedded(self.frozen(ids, mask), mask)

    def _words(self, prompt: str) -> dict[str, list[int]]:
        """The words of ``prompt``, lower-cased, with their pieces."""
        words: dict[str, list[int]] = {}
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        spelled: dict[int | None, tuple[str, list[int]]] = {}
        for index, (first, end), place in zip(encoded.ids, encoded.offsets, encoded.word_ids, strict=True):
            text, pieces = spelled.get(place, ("", []))
            spelled[place] = (text + prompt[first:end].lower(), [*pieces, index])
        for text, pieces in spelled.values():
            if any(character.isalnum() for character in text):
                words.setdefault(text, pieces)
        return words


class PackedSentenceEncoder(nn.Module):
    """BERT (Devlin et al. 2019): sum of word piece and position, LayerNorm, post-norm layers. Frozen, packed."""

    positions: Tensor
    vectors: Tensor
    norm: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.vector_dim
        self.heads = config.sentence_heads
        self.words = PackedMatrix(config.vocab_size, dim)
        shapes = {"qkv": (3 * dim, dim), "out": (dim, dim), "up": (_WIDER * dim, dim), "down": (dim, _WIDER * dim)}
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: PackedMatrix(*shape) for name, shape in shapes.items()})
            for _ in range(config.sentence_layers)
        )
        self.register_buffer("positions", torch.zeros(config.max_tokens, dim))
        self.register_buffer("norm", torch.zeros(2, dim))
        self.register_buffer("vectors", torch.zeros(config.sentence_layers, sum(_VECTORS) * dim))

    def _matrices(self) -> list[dict[str, PackedMatrix]]:
        return [dict(cast(nn.ModuleDict, layer).items()) for layer in self.layers]  # type: ignore[arg-type]

    @torch.no_grad()
    def take(self, encoder: Any, rows: Sequence[int]) -> None:
        """Take the weights of ``encoder``, transformers' ``BertModel``, of its word pieces those at ``rows``.

        Raises ``ValueError`` for another encoder.
        """
        theirs = encoder.state_dict()
        expected = {
            "hidden_size": self.words.scale.shape[1] * GROUP,
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": self.heads,
            "intermediate_size": _WIDER * self.positions.shape[1],
            "hidden_act": "gelu",
        }
        for name, value in expected.items():
            got = getattr(encoder.config, name, None)
            if got != value:
                raise ValueError(f"text.name_or_path: expected a sentence encoder with {name} {value}, got {got}")
        self.words.pack(theirs["embeddings.word_embeddings.weight"][list(rows)])
        kinds = theirs["embeddings.token_type_embeddings.weight"]
        self.positions.copy_(theirs["embeddings.position_embeddings.weight"][: len(self.positions)] + kinds[0])
        self.norm.copy_(torch.stack([theirs[f"embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]))
        for index, (layer, vectors) in enumerate(zip(self._matrices(), self.vectors, strict=True)):
            own = {
                key.removeprefix(f"encoder.layer.{index}."): value
                for key, value in theirs.items()
                if key.startswith(f"encoder.layer.{index}.")
            }
            parts = {
                "qkv": [f"attention.self.{name}" for name in ("query", "key", "value")],
                "out": ["attention.output.dense"],
                "up": ["intermediate.dense"],
                "down": ["output.dense"],
            }
            for name, keys in parts.items():
                layer[name].pack(torch.cat([own[f"{key}.weight"] for key in keys]))
            biases = {name: torch.cat([own[f"{key}.bias"] for key in keys]) for name, keys in parts.items()}
            first, second = (
                [own[f"{key}.LayerNorm.{name}"] for name in ("weight", "bias")]
                for key in ("attention.output", "output")
            )
            order = [biases["qkv"], biases["out"], *first, biases["up"], biases["down"], *second]
            vectors.copy_(torch.cat(order))

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token states (B, L, D), float32, of word pieces (B, L), of which ``mask`` says which there are."""
        dim = self.positions.shape[1]
        norm = self.norm.float()
        x = self.words.rows(ids) + self.positions[: ids.shape[1]].float()
        x = F.layer_norm(x, (dim,), norm[0], norm[1], _EPS)
        for layer, vectors in zip(self._matrices(), self.vectors.float(), strict=True):
            matrix = {name: packed.matrix() for name, packed in layer.items()}
            qkv, out, scale1, shift1, up, down, scale2, shift2 = vectors.split([count * dim for count in _VECTORS])
            q, k, v = rearrange(F.linear(x, matrix["qkv"], qkv), "b l (n h d) -> n b h l d", n=3, h=self.heads)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            x = x + F.linear(rearrange(attended, "b h l d -> b l (h d)"), matrix["out"], out)
            x = F.layer_norm(x, (dim,), scale1, shift1, _EPS)
            x = x + F.linear(F.gelu(F.linear(x, matrix["up"], up)), matrix["down"], down)
            x = F.layer_norm(x, (dim,), scale2, shift2, _EPS)
        return x


def sentence_encoder_tokenizer(name_or_path: str) -> str:
    """The content of the ``tokenizer.json`` of a sentence encoder. Raises ``ValueError`` if there is none."""
    tokenizer = load_tokenizer(name_or_path)
    if not tokenizer.is_fast:
        raise ValueError(
            f"name_or_path: expected a tokenizer of the tokenizers library in {name_or_path!r}, got another"
        )
    return str(tokenizer.backend_tokenizer.to_str())


def without_other_scripts(tokenizer_json: str, captions: Iterable[str]) -> str:
    """``tokenizer.json`` without the word pieces that no prompt in the scripts of ``captions`` has.

    Those are pieces with a letter of another script, and placeholders ("[unused7]"); a prompt that has such letters has
    unknown words then. Special tokens keep their ids, other pieces take the lowest free ones in their order. What is no
    WordPiece tokenizer, or has fewer pieces left than a special token's id, stays as it is.
    """
    content = json.loads(tokenizer_json)
    model = content["model"]
    if model.get("type") != "WordPiece":
        return tokenizer_json
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    scripts = {_script(letter) for caption in captions for letter in caption if letter.isalpha()}
    pieces = [
        piece
        for piece in sorted(model["vocab"], key=model["vocab"].__getitem__)
        if piece not in special
        and not _PLACEHOLDER.fullmatch(piece)
        and all(_script(letter) in scripts for letter in piece if letter.isalpha())
    ]
    number = len(special) + len(pieces)
    if max(special.values(), default=-1) >= number:
        return tokenizer_json
    free = sorted(set(range(number)) - set(special.values()))
    model["vocab"] = special | dict(zip(pieces, free, strict=True))
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _script(letter: str) -> str:
    """First word of a letter's name: LATIN, GREEK, CJK."""
    return unicodedata.name(letter, "").partition(" ")[0]


def _parts(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
