import pytest

from intermoe.data import mirror_caption, swap_caption


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("turns to the left, then right", "turns to the right, then left"),
        ("LEFT foot, Right foot", "RIGHT foot, Left foot"),
        ("with his left-hand side, rightward", "with his right-hand side, leftward"),
        ("spins clockwise", "spins counterclockwise"),
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
