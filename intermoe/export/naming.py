"""File names of generated motion: safe to use as such, short, and never those of an existing file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from intermoe.files import claimed_stem

SLUG_LENGTH = 48
_GAP = "--"


def slug(prompt: str) -> str:
    """A short file name for ``prompt``: lower-case ASCII letters, digits and hyphens only, never empty.

    Of a long prompt its first and its last words, with two hyphens where words are left out: prompts of a list often
    begin alike.
    """
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > SLUG_LENGTH:
        first = words[: (SLUG_LENGTH - len(_GAP)) // 2 + 1].rpartition("-")[0]
        room = SLUG_LENGTH - len(_GAP) - len(first)
        last = words[-room - 1 :].partition("-")[2]
        words = f"{first}{_GAP}{last}" if first and last else words[:SLUG_LENGTH]
    return words or "motion"


def output_stem(folder: str | Path, prompt: str, suffixes: Collection[str]) -> AbstractContextManager[Path]:
    """``folder/slug``, numbered where a file of that name and one of ``suffixes`` (``".npz"``) exists already.

    In ``with output_stem(...) as stem:`` no other process gets the same name.
    """
    return claimed_stem(Path(folder) / slug(prompt), suffixes)
