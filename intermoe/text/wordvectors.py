"""A small transformer over word pieces whose vectors come from a sentence encoder and stay: free wording, offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from intermoe.text.huggingface import load_frozen
from intermoe.text.protocol import (
    TextConfig,
    TextEncoder,
    check_prompts,
    masked_mean,
    pad_token_ids,
    parse_tokenizer,
    transformer,
)

NEAR = 0.5
"""Cosine from which on a word counts as like one that captions have."""
_END = "[SEP]"
_BATCH = 512


class WordVectorTextEncoder(TextEncoder):
    """Small pre-norm transformer, trained together with the denoiser, over vectors of word pieces that are kept.

    Vector (``vector_dim``) -> Linear to ``width`` + learned position -> ``num_layers`` layers -> LayerNorm -> mean over
    tokens -> Linear to ``output_dim``. What a sentence encoder holds to be alike is alike here too, so words that no
    caption has still mean something. While training, each word piece is left out with probability ``dropout``.

    Args:
        config: sizes; ``vocab_size`` vectors are kept. tokenizer_json: of the sentence encoder.

    Raises:
        ValueError: if the tokenizer is not one of BERT's word pieces or has more tokens than ``vocab_size``.
    """

    vectors: Tensor
    seen: Tensor

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self.tokenizer_json = tokenizer_json
        self._tokenizer = parse_tokenizer(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        end, tokens = self._tokenizer.token_to_id(_END), self._tokenizer.get_vocab_size()
        if end is None:
            raise ValueError(f"tokenizer_json: expected a token {_END}, as BERT's word pieces have it, got none")
        if tokens > config.vocab_size:
            raise ValueError(f"tokenizer_json: expected at most vocab_size={config.vocab_size} tokens, got {tokens}")
        self._end: int = end
        self.register_buffer("vectors", torch.zeros(config.vocab_size, config.vector_dim))
        self.register_buffer("seen", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.input = nn.Linear(config.vector_dim, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.transformer = transformer(config, norm_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.output_dim)
        nn.init.normal_(self.position_embedding, std=0.3)

    @torch.no_grad()
    def take_vectors(self, name_or_path: str) -> None:
        """Fill ``vectors`` from the sentence encoder ``name_or_path``: of each word piece what it makes of it alone.

        They are its mean states, less their mean, reduced to ``vector_dim`` principal directions and scaled to unit
        mean square. Word pieces with characters beyond ASCII get none. Raises ``ValueError`` as ``load_frozen``.
        """
        encoder = load_frozen(name_or_path)
        pieces = {index: token for token, index in self._tokenizer.get_vocab().items() if _is_word(token)}
        ids = torch.tensor(sorted(pieces))
        start = int(self._tokenizer.token_to_id("[CLS]") or 0)
        states = []
        for part in ids.split(_BATCH):
            rows = torch.stack([torch.full_like(part, start), part, torch.full_like(part, self._end)], dim=1)
            states.append(encoder(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state.mean(dim=1))
        found = torch.cat(states)
        found = nn.functional.normalize(found, dim=1)
        found = found - found.mean(dim=0)
        _, directions = torch.linalg.eigh(found.T @ found)
        found = found @ directions[:, -self.config.vector_dim :]
        self.vectors.zero_()
        self.vectors[ids] = (found / found.square().mean().sqrt()).to(self.vectors)

    def note(self, captions: Iterable[str]) -> None:
        """Remember the word pieces of the training's ``captions`` (``unknown_words``)."""
        for caption in captions:
            self.seen[self._encode(caption)] = True

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt``, lower-cased, that mean nothing like a word of the captions; in order, each once."""
        vectors = nn.functional.normalize(self.vectors.float(), dim=1)
        known = vectors[self.seen]
        unknown = []
        for word, pieces in self._words(prompt).items():
            if len(pieces) == 1 and not bool(self.seen[pieces[0]]):
                vector = vectors[pieces[0]]
                far = not len(known) or float((known @ vector).max()) < NEAR
            else:
                far = not bool(self.seen[pieces].all())
            unknown += [word] if far else []
        return unknown

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of the word pieces of ``prompt``, an end token last. Raises ``ValueError`` above ``max_tokens``."""
        ids = [*self._encode(prompt), self._end]
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

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts``: (B, output_dim) float32. Raises ``ValueError`` for a prompt that is too long."""
        rows = [self.token_ids(prompt) for prompt in check_prompts(prompts)]
        if self.training and self.config.dropout > 0:
            rows = [self._without_some(row) for row in rows]
        ids, mask = pad_token_ids(rows, self.vectors.device, self._end)
        states = self.input(self.vectors[ids]) + self.position_embedding[: ids.shape[1]]
        states = states.masked_fill(~mask[..., None], 0.0)
        states = self.norm(self.transformer(states, src_key_padding_mask=~mask))
        result: Tensor = self.output(masked_mean(states, mask)).float()
        return result

    def _without_some(self, row: list[int]) -> list[int]:
        kept = (torch.rand(len(row) - 1) >= self.config.dropout).tolist()
        return [index for index, keep in zip(row, kept, strict=False) if keep] + [self._end]

    def _encode(self, prompt: str) -> list[int]:
        """Word pieces that have a vector."""
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        return [index for index, token in zip(encoded.ids, encoded.tokens, strict=True) if _is_word(token)]

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


def _is_word(token: str) -> bool:
    return token.isascii() and token.removeprefix("##").isalnum()
