"""A small transformer over word pieces, trained together with the model: nothing to download."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from intermoe.nn.layers import Linear
from intermoe.text.protocol import (
    PieceTextEncoder,
    TextConfig,
    check_prompts,
    masked_mean,
    pad_token_ids,
    parse_tokenizer,
    transformer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[END]"
CONTINUATION = "##"


class WordPieceTextEncoder(PieceTextEncoder):
    """Small pre-norm transformer over word pieces, trained together with the denoiser.

    Token embedding + learned position -> ``num_layers`` layers -> LayerNorm -> mean over tokens -> Linear to
    ``output_dim``. Case and punctuation carry no meaning. While training, each word is spelled in pieces with
    probability ``dropout``, so that the pieces an unseen word is made of mean something too.

    Args:
        config: sizes; ``vocab_size`` rows are embedded, ``max_tokens`` positions (one of them the end token).
        tokenizer_json: what ``train_tokenizer`` returned.

    Raises:
        ValueError: if the tokenizer is not one of ``train_tokenizer``'s or has more tokens than ``vocab_size``.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self.tokenizer_json = tokenizer_json
        self._tokenizer = parse_tokenizer(tokenizer_json)
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        for token in (PAD, UNKNOWN, END):
            if token not in self._vocabulary:
                raise ValueError(f"tokenizer_json: expected a token {token}, as train_tokenizer makes it, got none")
        if (needed := max(self._vocabulary.values()) + 1) > config.vocab_size:
            raise ValueError(f"tokenizer_json: expected at most vocab_size={config.vocab_size} tokens, got {needed}")
        if (ids := self._tokenizer.encode("").ids) != [self._vocabulary[END]]:
            raise ValueError(f"tokenizer_json: expected {END} after every text, as train_tokenizer makes it, got {ids}")
        # train_tokenizer's order: special tokens, words, continuation pieces, beginnings of words.
        continuations = (index for token, index in self._vocabulary.items() if token.startswith(CONTINUATION))
        words_end = min(continuations, default=len(self._vocabulary))
        self._words = {token for token, index in self._vocabulary.items() if 3 <= index < words_end}
        self._spellings = {
            self._vocabulary[word]: [self._vocabulary[piece] for piece in pieces]
            for word in self._words
            if (pieces := _spell(word, self._vocabulary))
        }
        self.token_embedding = nn.Embedding(config.vocab_size, config.width, padding_idx=self._vocabulary[PAD])
        self.position_embedding = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.transformer = transformer(config, norm_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.output = Linear(config.width, config.output_dim)
        # At the size of what the layers add, so that single words stay legible in the mean over the tokens: smaller
        # ones are drowned, and "left" and "right" become one.
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_embedding, std=0.5)
        with torch.no_grad():
            self.token_embedding.weight[self._vocabulary[PAD]].zero_()

    @staticmethod
    def train_tokenizer(captions: Iterable[str], vocab_size: int) -> str:
        """Tokenizer of ``captions`` as JSON: every word of them is one token, so a word in pieces is one never seen.

        Besides the words there are all their characters and, as far as ``vocab_size`` allows, the beginnings and
        endings that several words share, most shared first. The result depends on the set of words only.

        Raises:
            ValueError: if there is no word, or ``vocab_size`` does not hold the words and characters.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
        )
        words = sorted({word for caption in captions for word in _split_words(tokenizer, caption)})
        if not words:
            raise ValueError("captions: expected at least one word, got none")
        characters = sorted({character for word in words for character in word})
        shared = Counter(piece for word in words for piece in _beginnings_and_endings(word))
        pieces = sorted((p for p, count in shared.items() if count > 1), key=lambda piece: (-shared[piece], piece))
        continuations = [CONTINUATION + character for character in characters]
        beginnings = [character for character in characters if character not in words]
        required = [PAD, UNKNOWN, END, *words, *continuations, *beginnings]
        if len(required) > vocab_size:
            raise ValueError(
                f"vocab_size: expected at least {len(required)} for the captions' {len(words)} words and "
                f"{len(characters)} characters, got {vocab_size}"
            )
        known = set(required)
        extra = [piece for piece in pieces if piece not in known][: vocab_size - len(required)]
        continuations += [piece for piece in extra if piece.startswith(CONTINUATION)]
        beginnings += [piece for piece in extra if not piece.startswith(CONTINUATION)]
        tokens = [PAD, UNKNOWN, END, *words, *continuations, *beginnings]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer.model = models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUATION)
        tokenizer.add_special_tokens([PAD, UNKNOWN, END])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
        )
        result: str = tokenizer.to_str(pretty=True)
        return result

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt``, lower-cased, that no training caption contained; in order, each once."""
        return [word for word in dict.fromkeys(_split_words(self._tokenizer, prompt)) if word not in self._words]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of ``prompt``, the end token last; a word with a character never seen is left out."""
        unknown = self._vocabulary[UNKNOWN]
        return [index for index in self._tokenizer.encode(prompt).ids if index != unknown]

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts``: (B, output_dim) float32. Raises ``ValueError`` for a prompt that is too long."""
        rows = [self.token_ids(prompt) for prompt in check_prompts(prompts)]
        if self.training:
            rows = [self._spell_at_random(row) for row in rows]
        ids, mask = pad_token_ids(rows, self.token_embedding.weight.device, self._vocabulary[PAD])
        states = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        states = states.masked_fill(~mask[..., None], 0.0)  # what a padded position holds is nobody's business
        states = self.norm(self.transformer(states, src_key_padding_mask=~mask))
        result: Tensor = self.output(masked_mean(states, mask)).float()
        return result

    def _spell_at_random(self, row: list[int]) -> list[int]:
        draws = torch.rand(len(row)).tolist()
        spelled: list[int] = []
        for index, draw in zip(row, draws, strict=True):
            pieces = self._spellings.get(index) if draw < self.config.dropout else None
            spelled += pieces or [index]
        return spelled if len(spelled) <= self.config.max_tokens else row


def _split_words(tokenizer: Tokenizer, text: str) -> list[str]:
    normalised = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised)]


def _beginnings_and_endings(word: str) -> list[str]:
    cuts = range(1, len(word))
    return [word[:cut] for cut in cuts] + [CONTINUATION + word[cut:] for cut in cuts]


def _spell(word: str, vocabulary: dict[str, int]) -> list[str]:
    """Longest-match pieces of ``word`` as if the whole word were no token; empty for a single character."""
    if len(word) == 1:
        return []
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start else ""
        longest = len(word) if start else len(word) - 1
        end = next((e for e in range(longest, start, -1) if prefix + word[start:e] in vocabulary), None)
        if end is None:
            return []
        pieces.append(prefix + word[start:end])
        start = end
    return pieces
