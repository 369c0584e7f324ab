"""Words with their part of speech, as the BiGRU evaluators read them, and the published word vectors.

A text is written ``word/POS word/POS ...``; HumanML3D and Inter-X publish such a line beside every caption. Some words
of movement have a category of their own in place of the part of speech.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intermoe.reading import first_line, numbered_lines, read_npy

CATEGORIES = (
    *("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV"),
    *("Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER"),
)
OWN_CATEGORY = {
    word: category
    for category, words in {
        "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight curve",
        "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
        "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
        "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift lower "
        "raise wash stand kneel stroll rub bend balance flap jog shuffle lean rotate spin spread climb",
        "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
    }.items()
    for word in words.split()
}
START, END, UNKNOWN = "sos", "eos", "unk"
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8")


def encode(text: str, index: dict[str, int], max_words: int) -> tuple[list[int], list[int]]:
    """Rows of the word vectors and numbers of the categories of ``text`` between start and end, at most ``max_words``.

    Raises:
        ValueError: an entry that is not ``word/POS``.
    """
    entries = text.split()
    if not entries or not all(entry.count("/") == 1 for entry in entries):
        raise ValueError(f"texts: expected 'word/POS word/POS ...', got {text[:80]!r}")
    words, categories = [], []
    for entry in (f"{START}/OTHER", *entries[:max_words], f"{END}/OTHER"):
        word, category = entry.split("/")
        if word not in index:
            word, category = UNKNOWN, "OTHER"
        category = OWN_CATEGORY.get(word, category)
        words.append(index[word])
        categories.append(CATEGORIES.index(category if category in CATEGORIES else "OTHER"))
    return words, categories


def read_word_vectors(folder: Path, prefix: str) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Words and their vectors (V, D) of the published ``<prefix>_data.npy`` and ``<prefix>_words.pkl``.

    The pickle is not loaded: the strings of its instructions are read, and a file with any instruction that a list of
    words does not need is refused.
    """
    paths = [folder / f"{prefix}_{name}" for name in ("data.npy", "words.pkl")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"words: {folder} holds no {path.name}; the evaluator's publisher has it")
    vectors = read_npy(paths[0])
    words = _strings(paths[1])
    if vectors.ndim != 2 or len(vectors) != len(words) or not np.isfinite(vectors).all():
        raise ValueError(
            f"{paths[0]}: expected a finite vector for each of {len(words)} words, got shape {vectors.shape}"
        )
    missing = [word for word in (START, END, UNKNOWN) if word not in words]
    if missing or len(set(words)) != len(words):
        raise ValueError(
            f"{paths[1]}: expected different words with {START}, {END} and {UNKNOWN}, got none of {missing}"
        )
    return words, vectors.astype(np.float32)


def _strings(path: Path) -> list[str]:
    harmless = (*_STRINGS, "PROTO", "FRAME", "EMPTY_LIST", "LIST", "MARK", "APPEND", "APPENDS", "STOP", "MEMOIZE")
    strings = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name not in harmless and "PUT" not in opcode.name:
                raise ValueError(f"expected strings alone, got the instruction {opcode.name}")
            if opcode.name in _STRINGS:
                strings.append(str(argument))
    except Exception as error:  # of broken bytes the parser raises whatever it stumbles over
        raise ValueError(f"{path}: expected a list of words and nothing else, got {first_line(error)}") from error
    return strings


def read_texts(folder: Path) -> dict[str, str]:
    """Caption to ``word/POS ...`` from all lines ``caption#word/POS ...#start#end`` of the files in ``folder``.

    Raises:
        FileNotFoundError: no such folder or no text file in it. ValueError: a line without words; names file and line.
    """
    files: Sequence[Path] = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"texts: {folder} holds no .txt file with captions and their words")
    texts = {}
    for path in files:
        for number, line in numbered_lines(path):
            parts = line.split("#")
            if len(parts) < 2 or "/" not in parts[1]:
                form = "caption#word/POS word/POS ...#start#end"
                raise ValueError(f"{path}: line {number}: expected {form!r}, got {line[:80]!r}")
            texts[parts[0].strip()] = parts[1].strip()
    return texts
