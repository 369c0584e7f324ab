"""What ``intermoe generate`` draws of motion with more joints than a body's."""

from __future__ import annotations

import numpy as np

from intermoe.cli.generate import _body


def test_a_body_is_drawn_as_it_is() -> None:
    joints = np.random.default_rng(0).normal(size=(1, 4, 22, 3)).astype(np.float32)
    assert _body(joints) is joints


def test_hands_and_face_are_left_out_and_feet_stand_on_the_floor() -> None:
    joints = np.random.default_rng(0).normal(size=(2, 4, 55, 3)).astype(np.float32)
    body = _body(joints)
    assert body.shape == (2, 4, 22, 3)
    assert body[..., 1].min() == 0
    np.testing.assert_array_equal(body[..., [0, 2]], joints[:, :, :22, [0, 2]])
