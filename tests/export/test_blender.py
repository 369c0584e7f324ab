"""Blender itself, where it is installed as a module (``pip install bpy``), finds the joints where they are."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from intermoe import export
from intermoe.motion.skeleton import JOINT_NAMES

pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(find_spec("bpy") is None, reason="Blender is not installed: pip install bpy"),
]
FRAMES = (0, 10, 39)
SCRIPT = """
import json, sys
import bpy
kind, frames, *files = sys.argv[1:]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.context.scene.render.fps = 30
for file in files:
    if kind == "glb":
        bpy.ops.import_scene.gltf(filepath=file)
    else:
        bpy.ops.import_anim.bvh(filepath=file, global_scale=0.01, frame_start=0)
found = []
for figure in sorted((thing for thing in bpy.data.objects if thing.type == "ARMATURE"), key=lambda thing: thing.name):
    moved = figure.animation_data
    for track in moved.nla_tracks:
        moved.action, moved.action_slot = track.strips[0].action, track.strips[0].action_slot
    poses = []
    for frame in json.loads(frames):
        bpy.context.scene.frame_set(frame + (kind == "bvh"))
        heads = {bone.name: figure.matrix_world @ bone.head for bone in figure.pose.bones}
        poses.append({name: [place.x, place.z, -place.y] for name, place in heads.items()})
    found.append([figure.name, poses])
print("FOUND" + json.dumps(found))
"""


@pytest.mark.parametrize("kind", ["glb", "bvh"])
def test_blender_imports_both_people(two_people: np.ndarray, tmp_path: Path, kind: str) -> None:
    joints = two_people.copy()
    joints[1, 20:, [2, 5, 8, 11]] += np.float32(0.01)  # and a joint that slides
    paths = export.save(tmp_path / f"pair.{kind}", joints, names=("Ann", "Bo"))
    command = [sys.executable, "-c", SCRIPT, kind, json.dumps(FRAMES), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "FOUND" in done.stdout, done.stderr
    found = json.loads(done.stdout.split("FOUND")[1].splitlines()[0])
    assert len(found) == 2
    if kind == "glb":
        assert [name for name, _ in found] == ["Ann", "Bo"]
    for person, (_, poses) in enumerate(found):
        for frame, pose in zip(FRAMES, poses, strict=True):
            places = np.array([pose[name] for name in JOINT_NAMES])
            assert np.linalg.norm(places - joints[person, frame], axis=-1).max() < 1e-3
