"""The release's text encoder: CLIP's text tower, frozen, and a trainable adapter on all its token states.

Written with ``torch.nn`` layers, whose attention weights have the very layout of CLIP's checkpoints; the tower is the
text half of CLIP ViT-L/14@336px (Radford et al. 2021).
"""

from __future__ import annotations

import html
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from intermoe.hub import is_local
from intermoe.text.protocol import TextConfig, TextEncoder, check_prompts, parse_tokenizer, transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "openai/clip-vit-large-patch14-336"
PADDING = 0
STRAIGHT_QUOTES = str.maketrans("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "''''\"\"\"\"")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def at_end_of_text(states: Tensor, tokens: Tensor) -> Tensor:
    """States (B, L, D) at each row's end-of-text token, which has the largest id: (B, D)."""
    return states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]


class ClipPrompts(TextEncoder):
    """What all encoders on CLIP's token ids share: the tokenizer and CLIP's embedding of tokens and positions, frozen.

    Args:
        config: ``vocab_size`` rows of ``width`` are embedded; prompts are padded to ``max_tokens``, longer ones cut.
        tokenizer_json: CLIP's tokenizer; ``None`` loads it at the first prompt from ``name_or_path``, by default the
            Hugging Face model of the published tower.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self._tokenizer: Tokenizer | None = None
        if tokenizer_json is not None:
            self._use_tokenizer(tokenizer_json)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_tokens, config.width), requires_grad=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        self.token_embedding.requires_grad_(False)

    @abstractmethod
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, max_tokens) int64, the end-of-text token being the largest id of a row."""

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts``: (B, output_dim) float32."""
        return self.encode_tokens(self.tokenize(prompts))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids (B, max_tokens) to their embedding with that of their positions (B, max_tokens, width)."""
        if tokens.ndim != 2 or tokens.shape[1] != self.config.max_tokens:
            raise ValueError(
                f"tokens: expected shape (B, max_tokens={self.config.max_tokens}), got {tuple(tokens.shape)}"
            )
        embedded: Tensor = self.token_embedding(tokens) + self.position_embedding
        return embedded

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, max_tokens) int64: start, the prompt's, end, then zeros.

        A prompt that is too long is cut and keeps its end token, with a ``UserWarning``.

        Raises:
            ValueError: if no tokenizer was given and none can be loaded.
        """
        rows = [self._token_ids(prompt) for prompt in check_prompts(prompts)]
        tokens = torch.full((len(rows), self.config.max_tokens), PADDING, device=self.token_embedding.weight.device)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def load_tokenizer(self, name_or_path: str) -> Tokenizer:
        """Take CLIP's tokenizer from a folder or a Hugging Face model; it is then saved beside the weights.

        Raises:
            ValueError: if there is none, or one with more tokens than ``vocab_size``.
        """
        return self._use_tokenizer(_load_tokenizer_json(name_or_path))

    def _token_ids(self, prompt: str) -> list[int]:
        tokenizer = self._tokenizer or self.load_tokenizer(self.config.name_or_path or TOKENIZER)
        text = html.unescape(html.unescape(prompt)).translate(STRAIGHT_QUOTES).strip()
        ids: list[int] = tokenizer.encode(text).ids
        longest = self.config.max_tokens
        if len(ids) > longest:
            warnings.warn(f"prompts: {prompt[:60]!r}... has {len(ids)} tokens, cut to {longest}", stacklevel=4)
            ids = [*ids[: longest - 1], ids[-1]]
        return ids

    def _use_tokenizer(self, tokenizer_json: str) -> Tokenizer:
        tokenizer = parse_tokenizer(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if (needed := max(tokenizer.get_vocab().values(), default=-1) + 1) > self.config.vocab_size:
            raise ValueError(
                f"tokenizer_json: expected at most vocab_size={self.config.vocab_size} tokens, got {needed}"
            )
        self.tokenizer_json = tokenizer_json
        self._tokenizer = tokenizer
        return tokenizer


class ClipTower(ClipPrompts):
    """CLIP's text tower, frozen: embedding + learned positions, ``clip_layers`` pre-norm layers of ``clip_heads`` heads
    with a causal mask and QuickGELU, LayerNorm. Its weights are part of ``state_dict()``.

    Raises:
        ValueError: if ``clip_heads`` does not divide ``width``.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        if config.width % config.clip_heads:
            raise ValueError(f"clip_heads: expected a divisor of width={config.width}, got {config.clip_heads}")
        super().__init__(config, tokenizer_json)
        layer = nn.TransformerEncoderLayer(
            config.width, config.clip_heads, 4 * config.width, 0.0, quick_gelu, batch_first=True, norm_first=True
        )
        self.tower = nn.TransformerEncoder(layer, config.clip_layers, enable_nested_tensor=False)
        self.tower_norm = nn.LayerNorm(config.width)
        for frozen in (self.tower, self.tower_norm):
            frozen.requires_grad_(False)

    @torch.no_grad()
    def token_states(self, tokens: Tensor) -> Tensor:
        """Token ids (B, max_tokens) to the tower's states (B, max_tokens, width)."""
        states = self.embed_tokens(tokens)
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        normed: Tensor = self.tower_norm(self.tower(states, mask=causal.to(states.dtype), is_causal=True))
        return normed


class ClipTextEncoder(ClipTower):
    """Token ids -> CLIP text tower -> all token states -> adapter -> state at the end-of-text token.

    Adapter (trained): ``num_layers`` post-norm layers of ``num_heads`` heads with GELU, LayerNorm. As in the release it
    attends to the padding too, so every prompt is padded to ``max_tokens``; longer ones are cut there with a warning.

    Args:
        config: ``width`` is the tower's and the adapter's width and must equal ``output_dim``.
        tokenizer_json: see ``ClipPrompts``.

    Raises:
        ValueError: if ``output_dim`` differs from ``width`` or ``clip_heads`` does not divide it.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        if config.output_dim != config.width:
            raise ValueError(f"output_dim: expected width={config.width} for kind='clip', got {config.output_dim}")
        super().__init__(config, tokenizer_json)
        self.adapter = transformer(config, norm_first=False)
        self.adapter_norm = nn.LayerNorm(config.width)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, max_tokens): (B, output_dim) float32."""
        states = self.adapter_norm(self.adapter(self.token_states(tokens)))
        return at_end_of_text(states, tokens).float()


class ClipPooledEncoder(ClipTower):
    """CLIP's own embedding of a text: the tower's state at the end-of-text token, projected; nothing is trained.

    A text is cut to ``max_tokens`` with a warning. The causal tower lets nothing behind the end of a text reach it, so
    the number of tokens it is padded to makes no difference.

    Args:
        config: ``width`` of the tower, ``output_dim`` of the projection.
        tokenizer_json: see ``ClipPrompts``.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        super().__init__(config, tokenizer_json)
        self.projection = nn.Linear(config.width, config.output_dim, bias=False).requires_grad_(False)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, max_tokens): (B, output_dim) float32."""
        pooled: Tensor = self.projection(at_end_of_text(self.token_states(tokens), tokens))
        return pooled.float()


def _load_tokenizer_json(name_or_path: str) -> str:
    from transformers import AutoTokenizer

    try:
        local = is_local(name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"name_or_path: expected CLIP's tokenizer in {name_or_path!r}; give a folder with its tokenizer.json "
            f"or its vocab.json and merges.txt: {error}"
        ) from error
    content: str = tokenizer.backend_tokenizer.to_str()
    return content
