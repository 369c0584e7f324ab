import pytest

from intermoe.data import mirror_caption, swap_caption


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("turns to the left, then right", "turns to the right, then left"),
        ("LEFT foot, Right foot", "RIGHT foot, Left foot"),
        ("with his left-hand side, rightward", "with his right-hand side, leftward"),
        ("spins clockwise", "spins counterclockwise"),
        ("a lefthanded throw, Righthand up", "a righthanded throw, Lefthand up"),
        ("spins counterclockwise", "spins clockwise"),
        (
            "Counter-clockwise, counter clockwise, anticlockwise, anti-clockwise",
            "Clockwise, clockwise, clockwise, clockwise",
        ),
        ("stands upright, brightly", "stands upright, brightly"),
        ("kicks right away, right after that", "kicks right away, right after that"),
    ],
)
def test_mirror(caption, mirrored):
    assert mirror_caption(caption) == mirrored


@pytest.mark.parametrize(
    ("caption", "swapped"),
    [
        (
            "the second dancer mostly turned away from the first while holding both hands",
            "the first dancer mostly turned away from the second while holding both hands",
        ),
        ("The first person bows; SECOND person waits", "The second person bows; FIRST person waits"),
        ("one of them spins once to the right", "one of them spins once to the right"),
        ("for the first time they meet; at first slowly", "for the first time they meet; at first slowly"),
        ("waits a second", "waits a second"),
    ],
)
def test_swap(caption, swapped):
    assert swap_caption(caption) == swapped
    assert swap_caption(swapped) == caption


def test_real_captions_come_back(salsa):
    captions = {line for path in (salsa / "annots").glob("*.txt") for line in path.read_text().splitlines()}
    for caption in captions:
        assert mirror_caption(mirror_caption(caption)) == caption
        assert swap_caption(swap_caption(caption)) == caption
    assert any(swap_caption(caption) != caption for caption in captions)


@pytest.mark.parametrize(
    "caption",
    [
        "one dancer left the stage; the man who left waves",
        "They left, and both of them are left alone.",
        "she's left her partner behind",
        "the shorter one left him kneeling",
        "when nothing is left they bow",
        "what is left of the line falls apart",
        "the first person left, then the second person left too",
        "that's right, he got it right",
        "arms bent at right angles, right at the wall",
        "they sit right next to each other, right behind the third",
        "it happens right as they meet, at the right moment",
        "the right moment, the right rhythm and the right way",
        "one walks right up to the other",
    ],
)
def test_what_is_no_side_stays(caption):
    assert mirror_caption(caption) == caption


@pytest.mark.parametrize(
    "caption",
    [
        "one goes left while the other goes right",
        "one person left, one person right",
        "the left one pulls the partner left with both hands",
        "turns left in front of the other",
        "he is left-handed, and left of her",
        "kicks with the left standing leg",
        "her left over the other's left",
        "the person\u2019s left side, the leftmost",
        "to the left the woman waves",
        "from left to right, 90 degrees left",
        "raises left arm behind the back",
        "steps right as he bows, jumps right when she kneels",
        "holds his right behind him, moves from the right into her partner's right on the hip",
        "turns left alone, steps left alone",
    ],
)
def test_sides_change_however_they_are_said(caption):
    expected = caption.replace("left", "#").replace("right", "left").replace("#", "right")
    assert mirror_caption(caption) == expected
    assert mirror_caption(expected) == caption


def test_what_is_counted_is_no_person():
    things = "time times step steps beat move movement moment round turn spin attempt half part place phase stage"
    for word in things.split():
        assert swap_caption(f"in the first {word} they bow") == f"in the first {word} they bow"
    persons = (
        "dancer person partner performer individual man woman guy girl boy player fighter athlete actor figure human"
    )
    for word in (*persons.split(), "one"):
        assert swap_caption(f"first {word} bows") == f"second {word} bows"
