"""The text encoder that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from intermoe.text.clip import ClipPooledEncoder, ClipTextEncoder
from intermoe.text.huggingface import HuggingFaceTextEncoder
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.text.sentence import SentenceTextEncoder
from intermoe.text.wordpiece import WordPieceTextEncoder

OWN: dict[str, Callable[[TextConfig, str], TextEncoder]] = {
    "wordpiece": WordPieceTextEncoder,
    "sentence": SentenceTextEncoder,
}
"""Encoders with a tokenizer in the model's folder."""


def build_text_encoder(config: TextConfig, tokenizer_json: str | None) -> TextEncoder:
    """The text encoder that ``config.kind`` names.

    Args:
        config: which encoder and its sizes.
        tokenizer_json: content of ``tokenizer.json``: needed by the kinds of ``OWN``, optional for
            both kinds of ``clip`` (otherwise loaded by name at the first prompt), must be ``None`` for
            ``huggingface``, which has its own.

    Raises:
        ValueError: if the tokenizer is missing or not wanted, or the encoder cannot be loaded.
    """
    if config.kind in OWN:
        if tokenizer_json is None:
            expected = f"the tokenizer that kind={config.kind!r} was trained with"
            raise ValueError(f"tokenizer_json: expected {expected}, got None")
        return OWN[config.kind](config, tokenizer_json)
    if config.kind == "huggingface":
        if tokenizer_json is not None:
            raise ValueError(
                "tokenizer_json: expected None with kind='huggingface', which brings its own tokenizer, got one"
            )
        return HuggingFaceTextEncoder(config)
    encoder_type = ClipPooledEncoder if config.kind == "clip_pooled" else ClipTextEncoder
    return encoder_type(config, tokenizer_json)
