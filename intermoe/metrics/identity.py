r"""Identity metrics: whether each of two persons stays who they are from the first frame to the last.

Joints are (2, T, 22, 3) in metres, Y up. Four independent signs are measured:

- *bones*: a body keeps its size and proportions (``bone_inconsistency``);
- *style*: a person moves like themself, told by velocity and acceleration spectra of each limb (``style_overlap``);
- *role*: the partner stays where they were, seen from oneself, and left stays left (``role_break``);
- *place*: nobody goes on where the other was (``swap_score``), and two bodies do not become one (``separation``).

Bones can only tell persons apart, or see them exchanged, whose skeletons differ, and no skeleton tells left from right.
Style says little on its own in clips of a few seconds: a couple's styles overlap. It serves to compare motion with a
damaged copy of itself, or the averages of many clips.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intermoe.metrics.frames import mirror_body, require_finite, to_body
from intermoe.motion.interhuman import FPS
from intermoe.motion.skeleton import NUM_JOINTS, bone_vectors

Floats = npt.NDArray[np.floating]

JOINT_GROUPS: dict[str, tuple[int, ...]] = {
    "pelvis": (0,),
    "trunk": (3, 6, 9, 12, 15),
    "left arm": (13, 16, 18, 20),
    "right arm": (14, 17, 19, 21),
    "left leg": (1, 4, 7, 10),
    "right leg": (2, 5, 8, 11),
}
# Hertz: sway, steps, gestures, and what is quicker than people mean to move.
BANDS = (0.5, 1.5, 3.0, 6.0, 15.0)
WINDOW_SECONDS = 16 / 15
HOP_SECONDS = 4 / 15
# Added to power before the logarithm, (m/s)^2/Hz or (m/s^2)^2/Hz: below it a limb is at rest.
_REST = 1e-4
# Both lie between what 85 clips of salsa reach, at most -2.7 and at least 0.19 m, and what their broken copies do:
# `intermoe evaluate identity --data DATA` counts both beside each other.
SWAP_THRESHOLD = -2.0
MERGE_DISTANCE = 0.15


def bone_inconsistency(joints: Floats) -> float:
    """Root mean square over persons, bones and frames of ln(length / median length of that bone), in %.

    A uniform change of size by 5 % for half of the time counts 5 / sqrt(2); motion with rigid bones counts 0.
    """
    _check(joints)
    logarithms = np.log(np.linalg.norm(bone_vectors(joints.astype(np.float64)), axis=-1) + 1e-6)
    deviations = logarithms - np.median(logarithms, axis=1, keepdims=True)
    return float(100 * np.sqrt((deviations**2).mean()))


class Spectra(NamedTuple):
    """One-sided power spectral densities of joint groups in W windows.

    ``velocity`` (P, W, G, F) in (m/s)^2/Hz and ``acceleration`` (P, W, G, F) in (m/s^2)^2/Hz, each the mean over the
    group's joints of the sum over the three axes; ``frequencies`` (F,) in hertz.
    """

    frequencies: npt.NDArray[np.float64]
    velocity: npt.NDArray[np.float64]
    acceleration: npt.NDArray[np.float64]


def min_frames(fps: float = FPS) -> int:
    """Fewest frames in which style can be compared: two windows."""
    return round(WINDOW_SECONDS * fps) + max(1, round(HOP_SECONDS * fps)) + 2


def style_spectra(joints: Floats, *, fps: float = FPS) -> Spectra:
    """Spectra of how each joint group moves: the pelvis in the world, all others in the body's own frame.

    Differences of positions times ``fps`` are taken in Hann windows of ``WINDOW_SECONDS`` every ``HOP_SECONDS``:
    |DFT(w v)|^2 * 2 / (fps * sum w^2), the periodogram of Welch (1967) before averaging.

    Raises:
        ValueError: wrong shape, or fewer than ``min_frames``.
    """
    _check(joints)
    width, hop = round(WINDOW_SECONDS * fps), max(1, round(HOP_SECONDS * fps))
    if joints.shape[1] < min_frames(fps):
        raise ValueError(f"joints: expected at least {min_frames(fps)} frames, got {joints.shape[1]}")
    positions = to_body(joints, joints)
    positions[..., 0, :] = joints[..., 0, :]
    starts = np.arange(0, joints.shape[1] - 2 - width + 1, hop)
    window = np.hanning(width + 2)[1:-1]
    densities = []
    for order in (1, 2):
        signal = np.diff(positions, n=order, axis=1) * fps**order
        pieces = np.stack([signal[:, start : start + width] for start in starts], axis=1)
        power = np.abs(np.fft.rfft(pieces * window[:, None, None], axis=2)) ** 2 * 2 / (fps * (window**2).sum())
        groups = [power[..., joints_of, :].sum(axis=-1).mean(axis=-1) for joints_of in map(list, JOINT_GROUPS.values())]
        densities.append(np.stack(groups, axis=2))
    return Spectra(np.fft.rfftfreq(width, 1 / fps).astype(np.float64), *densities)


def style_overlap(joints: Floats, *, fps: float = FPS) -> float:
    """How alike the two persons' styles are compared with each person's own variation, in [-1, 1]; lower is better.

    A second of motion is described by the mean densities of ``style_spectra`` in ``BANDS``, in decibels. The value is
    minus the mean silhouette coefficient (Rousseeuw 1987) of all windows, with the persons as clusters: -(b - a) /
    max(a, b), a the mean distance to the same person's other windows, b to the partner's. Persons who exchange style
    in the middle, or both move alike, raise it.
    """
    spectra = style_spectra(joints, fps=fps)
    features = []
    for density in (spectra.velocity, spectra.acceleration):
        for low, high in itertools.pairwise(BANDS):
            band = (spectra.frequencies >= low) & (spectra.frequencies <= high)
            features.append(10 * np.log10(density[..., band].mean(axis=-1) + _REST))
    points = np.concatenate(features, axis=-1)
    windows = points.shape[1]
    flat = points.reshape(2 * windows, -1)
    distances = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(axis=-1))
    same = np.arange(2 * windows) // windows
    own = same[:, None] == same
    a, b = (distances * own).sum(axis=1) / (windows - 1), (distances * ~own).sum(axis=1) / windows
    return float(((a - b) / np.maximum(np.maximum(a, b), 1e-9)).mean())


class Break(NamedTuple):
    """The worst moment of a clip: ``score`` between the frames ``frame`` - 1 and ``frame``; higher is worse."""

    score: float
    frame: int


def swap_score(joints: Floats) -> Break:
    """Whether, anywhere, the persons' motion is continued by the partner rather than by themself.

    Every pair of neighbouring frames is bridged from both sides, x = (x[t-1] + half a step of the velocity before it)
    and y = (x[t] - half a step of the velocity after it); score = max over t of ln(own / crossed), where own is the
    mean joint distance between each person's x and y, and crossed that to the partner's y. At 0 nothing tells who goes
    on as whom; above ``SWAP_THRESHOLD`` counts as a swap, although a body that jumps anywhere reaches it as well.
    """
    _check(joints)
    before, after = _bridge(joints.astype(np.float64))
    return _worst(_distance(before, after), _distance(before, after[::-1]))


def role_break(joints: Floats) -> Break:
    """Whether, anywhere, a person's view of the partner is continued by the partner's view, or by its mirror image.

    A role is where the partner's 22 joints are in one's own body frame, left, up and forward in metres: who leads,
    who holds with which hand, who is turned away. It is bridged as in ``swap_score``; score = max over t of
    ln(own / min(crossed, mirrored)), mirrored being the distance to one's own view with left and right exchanged.
    """
    _check(joints)
    before, after = _bridge(to_body(joints[::-1], joints))
    others = np.minimum(_distance(before, after[::-1]), _distance(before, mirror_body(after)))
    return _worst(_distance(before, after), others)


class Separation(NamedTuple):
    """How close two bodies come to being one: ``distance`` in metres at ``frame``."""

    distance: float
    frame: int


def separation(joints: Floats) -> Separation:
    """Least mean distance between the persons' corresponding joints; below ``MERGE_DISTANCE`` bodies have merged."""
    _check(joints)
    distances = np.linalg.norm(joints[0].astype(np.float64) - joints[1], axis=-1).mean(axis=-1)
    frame = int(distances.argmin())
    return Separation(float(distances[frame]), frame)


@dataclass(frozen=True)
class IdentityMetrics:
    """All metrics of one clip, in the units of their functions; ``separation_cm`` in cm, and better the higher."""

    bone_inconsistency: float
    style_overlap: float
    role_break: float
    swap_score: float
    separation_cm: float


def measure_identity(joints: Floats, *, fps: float = FPS) -> IdentityMetrics:
    """All identity metrics of joints (2, T, 22, 3). Raises ``ValueError`` as ``style_spectra`` does."""
    return IdentityMetrics(
        bone_inconsistency=bone_inconsistency(joints),
        style_overlap=style_overlap(joints, fps=fps),
        role_break=role_break(joints).score,
        swap_score=swap_score(joints).score,
        separation_cm=100 * separation(joints).distance,
    )


def _bridge(positions: Floats) -> tuple[Floats, Floats]:
    """Both sides' guess of the moment between the frames t - 1 and t, each (2, T - 3, N, 3), for t from 2 to T - 2."""
    halves = np.diff(positions, axis=1) / 2
    return positions[:, 1:-2] + halves[:, :-2], positions[:, 2:-1] - halves[:, 2:]


def _distance(one: Floats, other: Floats) -> Floats:
    """Mean joint distance in each frame, summed over persons: (T,)."""
    total: Floats = np.linalg.norm(one - other, axis=-1).mean(axis=-1).sum(axis=0)
    return total


def _worst(own: Floats, others: Floats) -> Break:
    scores = np.log((own + 1e-9) / (others + 1e-9))
    return Break(float(scores.max()), int(scores.argmax()) + 2)


def _check(joints: Floats) -> None:
    if joints.ndim != 4 or joints.shape[0] != 2 or joints.shape[1] < 4 or joints.shape[2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: expected shape (2, T >= 4, {NUM_JOINTS}, 3), got {joints.shape}")
    require_finite(joints)
