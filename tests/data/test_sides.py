"""Every word that decides whether a "left" or "right" is a side, where nothing else does."""

from __future__ import annotations

import pytest

from intermoe.data.sides import is_side


def listed(words: str, between: str = " ") -> list[str]:
    return words.split(between)


PARTS = listed(
    "hand arm elbow wrist forearm fist palm finger thumb shoulder foot feet leg knee ankle heel toe thigh shin calf "
    "hip side flank ear eye cheek breast rib buttock hook jab cross uppercut punch kick corner edge half diagonal"
)
TURNING = listed(
    "turn spins rotates pivoting twirled swivels veers bends leaning tilts twisted looks glances facing points banks "
    "swerving curves rolled spinning pivotting turned rotate"
)
GOING = listed(
    "steps walks moves go goes runs rushed jogging jumps hopping leaps skips slides shifted sways swings swung dodges "
    "ducks lunges shuffles sidesteps marches travels heads stumbles gallops crawls pushes pulls shoves throws tosses "
    "kicks punches reaches stretches dashes chasses circles crosses stepped running jogged moving going"
)
PERSONS = listed(
    "person people man men woman women dancer partner performer individual guy girl boy player fighter athlete actor "
    "friend figure human couple leader follower opponent one other first second two both dancers"
)


def sides(word: str, cases: list[tuple[str, str]]) -> set[bool]:
    """What is said of ``word`` between the words before it and those after it."""
    return {is_side(before, word, after) for before, after in cases}


@pytest.mark.parametrize("word", ["right", "RIGHT", "Right"])
def test_either_word_is_one_in_any_case(word: str) -> None:
    assert not is_side("they kick ", word, " away")
    assert is_side("they kick ", word, "")
    left = {"right": "left", "RIGHT": "LEFT", "Right": "Left"}[word]
    assert not is_side("she has ", left, "")
    assert is_side("she kicks ", left, " away")


def test_parts_of_a_body_have_sides() -> None:
    assert sides("right", [("is ", f" {part}") for part in PARTS]) == {True}
    assert sides("right", [("is ", f" {part}s!") for part in ("hand", "knee")]) == {True}
    assert sides("left", [("has ", f" {part}") for part in PARTS]) == {True}
    spoken = [" standing leg", " raised arm", " lower arm", " of her", ", left", " and left", " or right", " to left"]
    assert sides("right", [("is ", after) for after in (*spoken, "-handed")]) == {True}
    assert sides("right", [("is ", after) for after in (" handy", " long arm", "-over", " and then")]) == {False}


def test_right_is_at_once_exactly_or_correct() -> None:
    at_once = listed("away now after before afterwards afterward")
    correct = listed("angle angles time moment moments way thing order answer word words rhythm tempo pace beat choice")
    assert sides("right", [("turns ", f" {word}") for word in at_once + correct]) == {False}
    assert sides("right", [("turns ", after) for after in ("-angle", "-angled", " angles,")]) == {False}
    exactly = listed(
        "next,beside,behind,between,in front,in between,in the,on top,on time,on cue,on the beat,at,where,here,there,"
        "through,past,up,down,back,against,into,under,underneath,above,below,across,along,opposite,alongside,on",
        ",",
    )
    assert sides("right", [("stands ", f" {words}") for words in exactly]) == {False}
    own = [f"{word} " for word in ("the", "his", "her", "their", "its", "own", "to", "from")]
    assert sides("right", [(before, " behind") for before in (*own, "dancer's ", "dancers' ", "man\u2019s ")]) == {True}
    assert sides("right", [("stands ", " as he bows"), ("stands ", " when he bows")]) == {False}
    before = listed("all alright just not quite get gets got do does is are be was were that's that\u2019s")
    said = [*before, "serves her", "serve them", "gets it", "is it"]
    assert sides("right", [(f"{words} ", "") for words in said]) == {False}
    assert sides("right", [("he kicks ", ""), ("to the ", "."), ("stands ", " with")]) == {True}


def test_who_turns_or_goes_right_does_so_to_a_side() -> None:
    assert sides("right", [(f"{word} ", " next to her") for word in TURNING]) == {True}
    assert sides("right", [(f"{word} ", " next to her") for word in GOING]) == {False}
    assert sides("right", [(f"{word} ", " as he bows") for word in GOING]) == {True}
    assert sides("left", [(f"{word} ", " the stage") for word in TURNING + GOING]) == {True}


def test_what_stands_before_a_left_side() -> None:
    words = listed(
        "the his her their its my your our own to on onto from toward towards at by front back upper lower far "
        "slightly further diagonally sideways forward forwards backward backwards over around down degrees"
    )
    others = ["dancer's", "dancers'", "man\u2019s", "right,", "right and", "left or", "right to"]
    assert sides("left", [(f"{before} ", " the stage") for before in words + others]) == {True}
    pronouns = listed("he she it who that there what")
    assert sides("left", [(f"{pronoun}'s ", " the stage") for pronoun in pronouns]) == {False}


def test_who_or_what_has_left_or_is_left() -> None:
    leavers = listed(
        "has have had having is are was were be been being get gets got they've they'd they're we\u2019ve he's she's "
        "it's who's that's there's he she they who everyone everybody someone nobody I we nothing something anything "
        "none time energy strength space room"
    )
    assert sides("left", [(f"{words} ", "") for words in leavers]) == {False}
    adverbs = listed(
        "just already never both all then now finally suddenly quickly slowly also soon almost nearly even not"
    )
    assert sides("left", [(f"he {adverb} ", " the stage") for adverb in adverbs]) == {False}
    assert sides("left", [(f"the man {adverb} ", "") for adverb in adverbs]) == {False}
    rest = ["what is", "what was", "what's", "what\u2019s", "what little", "whatever is"]
    assert sides("left", [(f"{words} ", " of her") for words in rest]) == {False}


def test_what_follows_a_left_that_is_no_side() -> None:
    behind = listed("behind alone over out standing hanging unattended unfinished without")
    objects = listed(
        "the,a,an,this,that,these,those,him,her,them,it,me,us,you,each other,one another,his way,their way,its way,"
        "himself,themselves,early,together,first,quickly",
        ",",
    )
    assert sides("left", [("bags ", f" {words}") for words in behind + objects]) == {False}
    assert sides("left", [("bags ", after) for after in ("", " his", " easily", " while they bow")]) == {True}


def test_who_left_is_the_subject_and_nothing_but_an_end_follows() -> None:
    assert sides("left", [(f"the {who} ", "") for who in PERSONS]) == {False}
    assert sides("left", [("the chair ", ""), ("pushes a man ", ""), ("the man ", " slowly")]) == {True}
    starts = listed(
        "and then but so while as when after before until because that and,then and,finally and,suddenly and,soon"
    )
    openings = [f"they bow {start.replace(',', ' ')} the man " for start in starts]
    assert sides("left", [(before, "") for before in openings]) == {False}
    assert sides("left", [(f"they bow{mark} the man ", "") for mark in ".,;:!?"]) == {False}
    articles = listed("the a an one two each another both this that")
    kinds = listed("tall short small big young old third remaining last same new male female taller")
    assert sides("left", [(f"{article} man ", "") for article in articles]) == {False}
    assert sides("left", [(f"the {kind} man ", "") for kind in (*kinds, "other", "first", "second")]) == {False}
    ends = [".", ",", ";", ":", "!", "?", " ."]
    words = listed("and then but so as when while after before because for in with too again")
    assert sides("left", [("the man ", after) for after in (*ends, *(f" {word}" for word in words))]) == {False}


def test_who_stands_left_of_another_that_is_right_stands_on_a_side() -> None:
    assert is_side("one person ", "left", ", the other right")
    assert is_side("one person right, the other person ", "left", "")
    assert not is_side("one person ", "left", ". The other turns right")
    assert not is_side("one person turned right. One person ", "left", "")
