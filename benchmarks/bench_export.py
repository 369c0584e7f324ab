"""Motion of two persons to files for other programs: 300 frames, from joints and columns to the file on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from intermoe import export
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, WrongResult, test_case
from intermoe.motion.interhuman import FPS
from intermoe.motion.rig import REST_POSE, forward_kinematics
from intermoe.motion.rotations import rotation_matrices

__all__ = ["cases", "test_case"]

MILLIMETRE = 1e-3
FORMATS = ("npz", "bvh", "glb", "amass", "html")


def take_of(frames: int) -> export.Take:
    """Two people who move all joints, and whose hips slide a little, as generated ones do; with their rotations."""
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 2 * np.pi, (2, 1, 22, 3))
    rotations = rotation_matrices(0.5 * np.sin(phases + np.arange(frames)[:, None, None] / 10))
    offsets = np.tile(REST_POSE, (2, frames, 1, 1))
    offsets[:, :, 1:4] += 0.01 * np.sin(phases[:, :, 1:4] + np.arange(frames)[:, None, None] / 7)
    offsets[:, :, 0] = np.array([[[0, 1, 0]], [[1, 1, 0]]])
    joints = forward_kinematics(offsets, rotations).astype(np.float32)
    motion = np.zeros((2, frames, 262), dtype=np.float32)
    motion[..., :66] = joints.reshape(2, frames, -1)
    motion[..., 132:258] = rotations[:, :, 1:, :, :2].reshape(2, frames, -1)
    return export.Take(joints, FPS, prompt="two people move", motion=motion)


def writing(name: str, frames: int) -> Contest:
    """Every call fits the skeleton anew. What can be read back is, once, before anything is timed."""
    chosen = export.FORMATS[name]
    missing = [module for module in chosen.needs if find_spec(module) is None]
    if missing:
        return Contest({}, None, 0.0, skipped={"write": f"{', '.join(missing)} not installed"})
    take = take_of(frames)
    folder = tempfile.TemporaryDirectory()

    def path() -> Path:
        return Path(folder.name) / f"motion{chosen.suffix}"

    def write(_: int) -> Outputs:
        fresh = export.Take(take.joints, take.fps, prompt=take.prompt, motion=take.motion)
        size = sum(written.stat().st_size for written in export.save_take(path(), fresh))
        return (torch.tensor(float(size)),)

    write(0)
    if chosen.read is not None:
        missed = float(np.abs(export.load(path()).joints - take.joints).max())
        if missed > MILLIMETRE:
            raise WrongResult(f"{name}: expected joints within a millimetre, got {1000 * missed:.2f} mm")
    return Contest({"write": write}, None, 0.0, seconds_of_motion=frames / FPS)


def cases(scope: Scope) -> Iterator[Case]:
    frames = 16 if scope.quick else 300
    for name in FORMATS:
        yield Case("export", name, torch.float32, {"frames": frames}, partial(writing, name, frames))
