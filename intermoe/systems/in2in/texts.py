"""The texts of one prompt: the interaction's, then each person's."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = "|"


def split_texts(prompt: str, persons: int) -> list[str]:
    """The interaction's text and every person's, of ``"both | one | other"``; of a single text that for everyone.

    Raises:
        ValueError: another number of texts, or one without a word.
    """
    texts = [text.strip() for text in prompt.split(SEPARATOR)]
    if len(texts) == 1:
        return texts * (1 + persons)
    if len(texts) != 1 + persons or not all(texts):
        count = 1 + persons
        raise ValueError(f"prompts: expected one text, or {count} with {SEPARATOR!r} between them, got {prompt!r}")
    return texts


def join_texts(interaction: str, individuals: Sequence[str]) -> str:
    """A prompt that ``split_texts`` takes apart; a separator inside a text becomes a comma."""
    return f" {SEPARATOR} ".join(text.replace(SEPARATOR, ",") for text in (interaction, *individuals))
