"""Words and their categories as the published evaluators have them, and word lists of every kind of pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from intermoe.evaluators.words import CATEGORIES, OWN_CATEGORY, encode, read_texts, read_word_vectors

LOCATIONS = "left right clockwise counterclockwise anticlockwise forward back backward up down straight curve"
BODY = "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh"
OBJECTS = "stair dumbbell chair window floor car ball handrail baseball basketball"
ACTIONS = (
    "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift lower raise wash stand "
    "kneel stroll rub bend balance flap jog shuffle lean rotate spin spread climb"
)
MANNERS = "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly"


def test_categories_are_those_of_the_published_vectorizer_in_its_order() -> None:
    """Guo et al. 2022, ``WordVectorizer``: the place of a category is its place in the one-hot vector."""
    assert CATEGORIES == (
        "VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV", "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP",
        "Desc_VIP", "OTHER",
    )  # fmt: skip
    lists = (LOCATIONS, BODY, OBJECTS, ACTIONS, MANNERS)
    kinds = ("Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP")
    assert {word: kind for words, kind in zip(lists, kinds, strict=True) for word in words.split()} == OWN_CATEGORY


def test_a_text_is_cut_between_its_start_and_its_end() -> None:
    index = {word: 10 + number for number, word in enumerate(("eos", "sos", "bow", "unk", "left", "deep"))}
    text = "bow/VERB zebra/NOUN left/NOUN deep/ADJ bow/X"
    words, categories = encode(text, index, 5)
    assert words == [11, 12, 13, 14, 15, 12, 10]
    assert categories == [14, 0, 14, 9, 7, 14, 14]
    assert encode(text, index, 2) == ([11, 12, 13, 10], [14, 0, 14, 14])
    assert encode(" bow/VERB\tdeep/ADV ", index, 2) == ([11, 12, 15, 10], [14, 0, 8, 14])
    for wrong in ("", " ", "bow", "bow/VERB deep", "bow/VERB/X", "bow/VERB " * 30 + "bow"):
        with pytest.raises(ValueError, match=r"texts: expected 'word/POS word/POS \.\.\.', got"):
            encode(wrong, index, 5)


def lists(folder: Path, content: bytes, count: int) -> list[str]:
    (folder / "w_words.pkl").write_bytes(content)
    vectors = np.arange(3.0 * count).reshape(count, 3)
    np.save(folder / "w_data.npy", vectors)
    words, found = read_word_vectors(folder, "w")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)
    return words


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_list_of_words_of_any_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    """Short words and one of more than 255 bytes, which is written in another way; letters of more than one byte."""
    words = ["sos", "eos", "unk", "verbeugen\u00df", "行", "a" * 300, *(f"w{number}" for number in range(1200))]
    assert lists(tmp_path, pickle.dumps(words, protocol), len(words)) == words


def test_a_word_with_a_length_of_eight_bytes_is_read(tmp_path: Path) -> None:
    """As words of more than four gigabytes are written."""
    words = ["sos", "eos", "unk"]
    content = b"\x80\x04](" + b"".join(b"\x8d" + len(w).to_bytes(8, "little") + w.encode() for w in words) + b"e."
    assert pickle.loads(content) == words
    assert lists(tmp_path, content, 3) == words


@pytest.mark.parametrize("words", [("sos", "eos", "unk", 3), ("sos", "eos", "unk", b"x"), {"sos": 1}, ["sos", None]])
def test_a_list_of_anything_else_is_refused(tmp_path: Path, words: object) -> None:
    for protocol in (0, 2, 4):
        with pytest.raises(ValueError, match="expected a list of words and nothing else, got expected strings alone"):
            lists(tmp_path, pickle.dumps(words, protocol), 4)


def test_captions_of_all_files_are_read_the_last_of_the_alphabet_last(tmp_path: Path) -> None:
    """Spaces around a caption say nothing; what comes after its words is not read."""
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt file with captions and their words"):
        read_texts(tmp_path)
    for name, word in (("b", "NOUN"), ("c", "VERB"), ("a", "DET")):
        text = f" a man bows # man/{word} bow/{word} #0.0#1.0\n{name}#x/X\n"
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.md").write_text("no words")
    found = read_texts(tmp_path)
    assert found == {"a man bows": "man/VERB bow/VERB", "a": "x/X", "b": "x/X", "c": "x/X"}
    assert list(found) == ["a man bows", "a", "b", "c"]
