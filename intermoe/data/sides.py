"""Whether a "left" or "right" of a caption means a side, by the words around it.

In descriptions of motion it nearly always does, so it counts as one unless the words say otherwise: "left" is also a
form of "to leave", and "right" also means exactly, correct or at once.
"""

from __future__ import annotations

import re

# What follows a side, or is one: these decide whatever stands before.
_PART = (
    r"hand|arm|elbow|wrist|forearm|fist|palm|finger|thumb|shoulder|foot|feet|leg|knee|ankle|heel|toe|thigh|shin|calf"
    r"|hip|side|flank|ear|eye|cheek|breast|rib|buttock|hook|jab|cross|uppercut|punch|kick|corner|edge|half|diagonal"
)
_SIDE_AFTER = re.compile(
    rf"-(?!over)\w|\s+(?:\w+(?:er|ed|ing)\s+)?(?:{_PART})s?\b|\s+of\b|\s*(?:,|and|or|to)\s+(?:left|right)\b", re.I
)

# What stands before a side: whose it is, which way, or a verb that has a direction.
_SIDE_BEFORE = re.compile(
    r"(?:\b(?:the|his|her|their|its|my|your|our|own|to|on|onto|from|toward|towards|at|by|front|back|upper|lower|far"
    r"|slightly|further|diagonally|sideways|forward|forwards|backward|backwards|over|around|down|degrees)"
    r"|(?<!\bhe)(?<!\bshe)(?<!\bit)(?<!\bwho)(?<!\bthat)(?<!\bthere)(?<!\bwhat)['\u2019]s|s['\u2019]"
    r"|\b(?:left|right)(?:,| and| or| to))\s+$",
    re.I,
)
_TURNING = r"turn|spin|rotat|pivot|twirl|swivel|veer|bend|lean|tilt|twist|look|glanc|fac|point|bank|swerv|curv|roll"
_GOING = (
    r"step|walk|mov|go|goes|run|rush|jog|jump|hop|leap|skip|slid|shift|sway|swing|swung|dodg|duck|lung|shuffl|sidestep|march"
    r"|travel|head|stumbl|gallop|crawl|push|pull|shov|throw|toss|kick|punch|reach|stretch|dash|chass\w|circl|cross"
)
_FORM = r"(?:p|n|t|g)?(?:e|es|s|ed|ing)?"
_TURNED_BEFORE = re.compile(rf"\b(?:{_TURNING}){_FORM}\s+$", re.I)
_WENT_BEFORE = re.compile(rf"\b(?:{_GOING}){_FORM}\s+$", re.I)

# "right": exactly, at once, correct.
_AT_ONCE = re.compile(r"\s+(?:away|now|after|before|afterwards?)\b", re.I)
_EXACTLY = re.compile(
    r"\s+(?:next|beside|behind|between|in\s+(?:front|between|the)|on\s+(?:top|time|cue|the\s+beat)|at|where|here"
    r"|there|through|past|up|down|back|against|into|under|underneath|above|below|across|along|opposite|alongside|on)\b",
    re.I,
)
_CORRECT = re.compile(
    r"\s+(?:angles?|time|moments?|way|thing|order|answer|words?|rhythm|tempo|pace|beat|choice)\b", re.I
)
_CORRECT_BEFORE = re.compile(
    r"\b(?:all|alright|just|not|quite|get|gets|got|do|does|is|are|be|was|were|that['\u2019]s|serves?\s+\w+)(?:\s+it)?\s+$",
    re.I,
)
_RIGHT_AS = re.compile(r"\s+(?:as|when)\b", re.I)

# "left": gone away, gone away from, remaining.
_ADVERB = (
    r"(?:\s+(?:just|already|never|both|all|then|now|finally|suddenly|quickly|slowly|also|soon|almost|nearly|even|not))*"
)
_LEAVER = re.compile(
    rf"(?:\b(?:has|have|had|having|is|are|was|were|be|been|being|get|gets|got)|['\u2019](?:ve|d|re)"
    rf"|(?:\bhe|\bshe|\bit|\bwho|\bthat|\bthere|\bwhat)['\u2019]s|\b(?:he|she|they|who|everyone|everybody|someone|nobody|I|we)"
    rf"|\b(?:nothing|something|anything|none|time|energy|strength|space|room)){_ADVERB}\s+$",
    re.I,
)
_PERSON = (
    r"person|people|man|men|woman|women|dancer|partner|performer|individual|guy|girl|boy|player|fighter|athlete|actor|friend"
    r"|figure|human|couple|leader|follower|opponent|one|other|first|second|two|both"
)
_PERSON_BEFORE = re.compile(rf"\b(?:{_PERSON})s?{_ADVERB}\s+$", re.I)
_SUBJECT = re.compile(
    rf"(?:^|[.,;:!?]|\b(?:and|then|but|so|while|as|when|after|before|until|because|that))\s*"
    rf"(?:(?:then|finally|suddenly|soon)\s+)?(?:(?:the|a|an|one|two|each|another|both|this|that)\s+)*"
    rf"(?:(?:tall|short|small|big|young|old|third|remaining|last|same|new|male|female)(?:er)?\s+)*"
    rf"(?:(?:other|first|second)\s+)?(?:{_PERSON})s?{_ADVERB}\s+$",
    re.I,
)
_WHAT_IS_LEFT = re.compile(r"\bwhat(?:ever)?(?:['\u2019]s|\s+(?:is|was|little))\s+$", re.I)
_LEFT_BEHIND = re.compile(r"\s+(?:behind|alone|over|out|standing|hanging|unattended|unfinished|without)\b", re.I)
_OBJECT = re.compile(
    r"\s+(?:the|a|an|this|that|these|those|him|her|them|it|me|us|you|each\s+other|one\s+another|(?:his|their|its)\s+\w+"
    r"|\w+sel(?:f|ves)|early|together|first|quickly)\b",
    re.I,
)
_END = re.compile(
    r"\s*(?:[.,;:!?]|$)|\s+(?:and|then|but|so|as|when|while|after|before|because|for|in|with|too|again)\b", re.I
)
_OTHER_SIDE_AFTER = re.compile(r"[^.;]*\bright\b", re.I)
_OTHER_SIDE_BEFORE = re.compile(r"\bright\b[^.;]*$", re.I)


def is_side(before: str, word: str, after: str) -> bool:
    """Whether ``word``, "left" or "right" in any case, means a side between the text ``before`` and ``after`` it."""
    return _right_is_side(before, after) if word.lower() == "right" else _left_is_side(before, after)


def _right_is_side(before: str, after: str) -> bool:
    if re.match(r"\s+angles?\b|-angle", after, re.I) or _AT_ONCE.match(after):
        return False
    if _SIDE_AFTER.match(after):
        return True
    if _CORRECT.match(after):
        return False
    if _TURNED_BEFORE.search(before):
        return True
    if _EXACTLY.match(after):
        return bool(re.search(r"\b(?:the|his|her|their|its|own|to|from)\s+$|['\u2019]s?\s+$", before, re.I))
    if _RIGHT_AS.match(after) and not _WENT_BEFORE.search(before):
        return False
    return not _CORRECT_BEFORE.search(before)


def _left_is_side(before: str, after: str) -> bool:
    if _WHAT_IS_LEFT.search(before):
        return False
    if _SIDE_AFTER.match(after) or _SIDE_BEFORE.search(before):
        return True
    if _LEAVER.search(before):
        return False
    if _TURNED_BEFORE.search(before) or _WENT_BEFORE.search(before):
        return True
    if _LEFT_BEHIND.match(after) or _OBJECT.match(after):
        return False
    if _PERSON_BEFORE.search(before) and _SUBJECT.search(before) and _END.match(after):
        # "one person left, the other right"
        return bool(_OTHER_SIDE_AFTER.match(after) or _OTHER_SIDE_BEFORE.search(before))
    return True
