"""From joints to jointed bodies: a rest pose, and the rotation of every joint at every frame.

Most programs want rotations, motion has positions. What every rig here keeps, whatever the motion, is that its forward
kinematics gives the joints back.

- The pelvis and the chest have three bones each, whose directions say their whole orientation: it is fitted in closed
  form (Kabsch), so that it does not matter where a figure faces.
- A joint with one bone is turned by the shortest arc that brings the bone to its direction. What is turned is the
  model's own rotation of the joint where it is known, which then says the twist about the bone; else that of the
  parent, which means no twist of the joint's own.
- Joints without a bone (head, wrists, toes) have the model's own rotation, or the parent's.
- None of them flips where bones leave it open for a moment: see ``intermoe.motion.steady``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intermoe.motion.rotations import (
    Array,
    best_rotation,
    rotation_matrices,
    shortest_arc,
    to_rotation_vectors,
    unit,
)
from intermoe.motion.skeleton import NUM_JOINTS, PARENTS, bone_vectors
from intermoe.motion.steady import steady_turns, steady_twists

REST_POSE: Array = np.array(
    [
        (0.0, 0.0, 0.0), (0.07, -0.08, -0.01), (-0.07, -0.08, -0.01), (0.0, 0.12, -0.02), (0.03, -0.38, 0.0),
        (-0.03, -0.38, 0.0), (0.0, 0.13, 0.0), (-0.01, -0.42, -0.04), (0.01, -0.42, -0.04), (0.0, 0.06, 0.0),
        (0.02, -0.06, 0.13), (-0.02, -0.06, 0.13), (0.0, 0.21, -0.03), (0.07, 0.12, -0.02), (-0.07, 0.12, -0.02),
        (0.0, 0.09, 0.04), (0.12, 0.03, -0.01), (-0.12, 0.03, -0.01), (0.26, 0.0, -0.02), (-0.26, 0.0, -0.02),
        (0.25, 0.0, 0.0), (-0.25, 0.0, 0.0),
    ]
)  # fmt: skip
"""(22, 3): each joint seen from its parent in a T-pose, metres, Y up, facing Z+, left at X+. A grown-up of 1.7 m."""

END_SITES = {
    10: (0.0, 0.0, 0.07), 11: (0.0, 0.0, 0.07), 15: (0.0, 0.18, 0.0), 20: (0.08, 0.0, 0.0), 21: (-0.08, 0.0, 0.0)
}  # fmt: skip
"""Where toes, head and hands end, seen from the last joint at rest, metres."""

CHILDREN = tuple(tuple(child for child, parent in enumerate(PARENTS) if parent == joint) for joint in range(NUM_JOINTS))

RIGID = 5e-4
"""Metres by which forward kinematics of bones that keep their place may miss a joint for them to be taken as such."""
SLIDING = 1e-4
"""Metres by which a bone of a body that is not rigid leaves its place to count as one that slides."""

_TRUST = 0.5
"""Length of the axes of a known rotation beside bones of length 1, where several bones fit a rotation."""
_CALIBRATION_STEPS = 5
_FRAMES_ALIKE = 10
_USUAL_TURN = 0.06  # radians: the angle of C (see _own_frame) in the motion capture which the tests read


@dataclass(frozen=True)
class Rig:
    """P persons as jointed bodies over T frames; metres, Y up. Joint 0 is the root, its parent the world.

    ``rest`` (P, 22, 3): offset of each joint from its parent at rest, where no joint is turned: a T-pose facing Z+. The
    root's is 0. ``offsets`` (P, T, 22, 3): the offset at each frame in the parent's frame; the root's is its place.
    ``rotations`` (P, T, 22, 3, 3): of each joint relative to its parent. ``sliding``: joints but the root whose offset
    is not that of ``rest`` at all frames. Measured bodies have none; a decoder's hips and shoulders move a little
    against pelvis and chest. ``fitted``: whether the twist about bones is chosen (see above), not known.
    """

    rest: Array
    offsets: Array
    rotations: Array
    sliding: tuple[int, ...]
    fitted: bool


def forward_kinematics(offsets: Array, rotations: Array) -> Array:
    """Joints (..., 22, 3) of offsets (..., 22, 3) and rotations (..., 22, 3, 3), both relative to the parents."""
    places, turns = [offsets[..., 0, :]], [rotations[..., 0, :, :]]
    for joint in range(1, NUM_JOINTS):
        parent = PARENTS[joint]
        places.append(places[parent] + (turns[parent] @ offsets[..., joint, :, None])[..., 0])
        turns.append(turns[parent] @ rotations[..., joint, :, :])
    return np.stack(places, axis=-2)


def at_rest(rest: Array) -> Array:
    """Joints (..., 22, 3) of a body at rest, from offsets (..., 22, 3) to the parents."""
    return forward_kinematics(rest, np.broadcast_to(np.eye(3), (*rest.shape, 3)))


def fit_rig(joints: Array, own: Array | None = None) -> Rig:
    """The rig of joints (P, T, 22, 3), with the rotations (P, T, 21, 3, 3) of joints 1..21 where they are known."""
    bones = np.zeros_like(joints)
    bones[:, :, 1:] = bone_vectors(joints)
    lengths = np.linalg.norm(bones, axis=-1).mean(1)
    ways = unit(bones)
    rest = np.tile(unit(REST_POSE), (len(joints), 1, 1))
    turns: list[Array] = []
    for joint, children in enumerate(CHILDREN):
        towards = ways[:, :, list(children)]
        known = own[:, :, joint - 1] if own is not None and joint > 0 else None
        if joint == 0:
            guess = best_rotation(rest[:, None, list(children)], towards)
            if own is not None:
                guess = guess @ _own_frame(guess, own, ways)[:, None]
        else:
            guess = turns[PARENTS[joint]]
            if known is not None:
                guess = guess @ known
        if own is None and len(children) > 1:
            guess = best_rotation(rest[:, None, list(children)], towards)
        if own is not None or len(children) > 1:
            for child in children:
                rest[:, child] = _mean_direction(guess, ways[:, :, child], rest[:, child])
        if own is not None and len(children) > 1 and joint > 0:
            # bones that lie badly, as generated ones may, leave the turn open: the known rotation decides then
            axes = np.broadcast_to(_TRUST * np.eye(3), (*guess.shape[:2], 3, 3))
            resting_bones = np.broadcast_to(rest[:, None, list(children)], towards.shape)
            guess = best_rotation(
                np.concatenate([resting_bones, axes], axis=2),
                np.concatenate([towards, _TRUST * np.swapaxes(guess, -1, -2)], axis=2),
            )
        elif len(children) > 1:
            guess = best_rotation(rest[:, None, list(children)], towards)
        elif children:
            lying = (guess @ rest[:, None, children[0], :, None])[..., 0]
            towards = np.where(_has_direction(ways[:, :, children[0]]), ways[:, :, children[0]], lying)[:, :, None]
            guess = shortest_arc(lying, towards[:, :, 0]) @ guess
        if children:
            guess = _steady(turns[PARENTS[joint]] if joint else None, guess, towards, known, rest[:, children[0]])
        turns.append(guess)
    rest *= lengths[..., None]
    turned = np.stack(turns, axis=2)
    above = turned[:, :, list(PARENTS[1:])]
    rotations = turned.copy()
    rotations[:, :, 1:] = np.swapaxes(above, -1, -2) @ turned[:, :, 1:]
    resting = np.broadcast_to(rest[:, None], joints.shape).copy()
    resting[:, :, 0] = joints[:, :, 0]
    if np.linalg.norm(forward_kinematics(resting, rotations) - joints, axis=-1).max() <= RIGID:
        return Rig(rest, resting, rotations, (), own is None)
    offsets = resting.copy()
    offsets[:, :, 1:] = (np.swapaxes(above, -1, -2) @ bones[:, :, 1:, :, None])[..., 0]
    slides = np.linalg.norm(offsets - resting, axis=-1).max((0, 1)) > SLIDING
    offsets[:, :, ~slides] = resting[:, :, ~slides]
    return Rig(rest, offsets, rotations, tuple(np.flatnonzero(slides).tolist()), own is None)


def _steady(parent: Array | None, turned: Array, towards: Array, known: Array | None, axis: Array) -> Array:
    """``turned`` (P, T, 3, 3) without flips, whose bones point ``towards`` (P, T, K, 3), as seen from ``parent``."""
    inverse = None if parent is None else np.swapaxes(parent, -1, -2)
    fitted, bones = turned, towards
    if inverse is not None:
        fitted, bones = inverse @ turned, np.einsum("ptij,ptkj->ptki", inverse, towards)
    if bones.shape[2] == 1:
        steady = steady_twists(fitted, bones[:, :, 0], known, axis)
    else:
        steady = steady_turns(fitted, bones, known)
    if steady is fitted:
        return turned
    return steady if parent is None else parent @ steady


def _own_frame(pelvis: Array, own: Array, ways: Array) -> Array:
    """What turns the frame fitted to the pelvis (P, T, 3, 3) into the one that own rotations start from: (P, 3, 3).

    A person's three bones of the pelvis need not lie as in ``REST_POSE``, so the fitted frame is off by one rotation C.
    The bones after them show it: their direction u in the fitted frame is C R d with the joint's own rotation R and one
    direction d at rest for all frames. C is fitted by Gauss-Newton steps, each d being the mean of R^T C^T u. Measured
    rotations fit exactly; generated ones do not, and then say less about C than that it is small, so the fit weighs
    both: the squared misfit by its own mean, over frames that come in groups, and the angle of C by what is usual.
    """
    persons, frames = ways.shape[:2]
    below = list(CHILDREN[0])
    after = [CHILDREN[joint][0] for joint in below]
    seen = (np.swapaxes(pelvis, -1, -2)[:, :, None] @ ways[:, :, after, :, None])[..., 0]  # (P, T, 3, 3)
    rotations = own[:, :, [joint - 1 for joint in below]]
    frame = np.tile(np.eye(3), (persons, 1, 1))
    for _ in range(_CALIBRATION_STEPS):
        turned = frame[:, None, None] @ rotations
        directions = np.einsum("ptkij,ptki->pkj", turned, seen) / frames
        expected = np.einsum("ptkij,pkj->ptki", turned, directions)
        # A small turn w moves the expected e by w x e, and the best d with it, which takes back what it can.
        cross = _cross_matrices(expected)
        coupling = np.einsum("ptkij,ptkjl->pkil", cross, turned)
        system = np.einsum("ptkli,ptklj->pij", cross, cross) - np.einsum("pkil,pkjl->pij", coupling, coupling) / frames
        misfit = ((seen - expected) ** 2).sum(-1).mean((1, 2))
        weight = (_FRAMES_ALIKE * misfit / _USUAL_TURN**2 + 1e-9)[:, None]
        gradient = np.cross(expected, seen).sum((1, 2)) - weight * to_rotation_vectors(frame)
        step = np.linalg.solve(system + weight[..., None] * np.eye(3), gradient[..., None])[..., 0]
        frame = rotation_matrices(step) @ frame
    return frame


def _cross_matrices(vectors: Array) -> Array:
    """Matrices (..., 3, 3) that map w to ``vectors`` x w."""
    return np.cross(vectors[..., None, :], np.eye(3)).swapaxes(-1, -2)


def _mean_direction(frames: Array, bones: Array, default: Array) -> Array:
    """Mean over time of unit vectors (P, T, 3) seen from frames (P, T, 3, 3): (P, 3); ``default`` where it is none."""
    mean = (np.swapaxes(frames, -1, -2) @ bones[..., None])[..., 0].mean(1)
    return np.where(np.linalg.norm(mean, axis=-1, keepdims=True) > 1e-3, unit(mean), default)


def _has_direction(bones: Array) -> Array:
    return np.linalg.norm(bones, axis=-1, keepdims=True) > 0.5
