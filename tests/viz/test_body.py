"""The body of capsules, limb by limb."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import JOINT_NAMES, LEFT_JOINTS, RIGHT_JOINTS
from intermoe.viz.body import BODY, LEFT, RIGHT, SKIN, build_body


def bent() -> np.ndarray:
    """(1, 1, 22, 3): somebody whose joints are all a little aside, none as its counterpart."""
    return (at_rest(REST_POSE) + np.random.default_rng(0).uniform(-0.05, 0.05, (22, 3)))[None, None]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_hand_goes_on_where_its_own_forearm_ends(side: str) -> None:
    joints = bent()
    body = build_body(joints)
    wrist, elbow = (joints[0, 0, JOINT_NAMES.index(f"{side}_{name}")] for name in ("wrist", "elbow"))
    (hand,) = np.flatnonzero((body.joints == JOINT_NAMES.index(f"{side}_wrist")) & (body.tones == SKIN))
    along = (wrist - elbow) / np.linalg.norm(wrist - elbow)
    np.testing.assert_allclose(body.ends[0, 0, hand], [wrist, wrist + 0.07 * along])


def test_who_is_mirrored_has_a_mirrored_body() -> None:
    """As thick on either side, and what was left is right."""
    joints, mirror = bent(), np.array([-1.0, 1.0, 1.0])
    other = list(range(22))
    for left, right in zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True):
        other[left], other[right] = right, left
    body, mirrored = build_body(joints), build_body(joints[:, :, other] * mirror)
    tone = {BODY: BODY, SKIN: SKIN, LEFT: RIGHT, RIGHT: LEFT}
    for ends, radii, own, joint in zip(body.ends[0, 0], body.radii, body.tones, body.joints, strict=True):
        (found,) = np.flatnonzero((np.abs(mirrored.ends[0, 0] - ends * mirror) < 1e-9).all((1, 2)))
        np.testing.assert_array_equal(mirrored.radii[found], radii)
        assert (mirrored.tones[found], mirrored.joints[found]) == (tone[int(own)], other[joint])
