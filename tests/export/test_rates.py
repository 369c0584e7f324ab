"""A rate that is no whole number is kept by every format but pages, of which ``test_html.py`` tells."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from intermoe import export
from intermoe.motion.rig import REST_POSE, at_rest

FPS, FRAMES = 12.5, 6


def _of_glb(path: Path) -> float:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    root = json.loads(content[20 : 20 + length])
    times = root["accessors"][root["animations"][0]["samplers"][0]["input"]]
    return float((times["count"] - 1) / times["max"][0])


def _of_mp4(path: Path) -> float:
    return float(next(pytest.importorskip("imageio_ffmpeg").read_frames(str(path)))["fps"])


def _of_gif(path: Path) -> float:
    with pytest.importorskip("PIL.Image").open(path) as picture:
        return 1000 / float(picture.info["duration"])


READERS = {"glb": _of_glb, "mp4": _of_mp4, "gif": _of_gif}


@pytest.mark.parametrize("format", [name for name in export.written() if name != "html"])
def test_it_is_kept(format: str, tmp_path: Path) -> None:
    for module in export.FORMATS[format].needs:
        pytest.importorskip(module)
    joints = (at_rest(REST_POSE) + np.array([0, 0.95, 0]))[None, None].repeat(FRAMES, axis=1)
    view = export.View(size=(128, 128))
    (path,) = export.save(tmp_path / f"bow{export.FORMATS[format].suffix}", joints, FPS, view=view)
    found = READERS[format](path) if format in READERS else export.load(path).fps
    assert found == pytest.approx(FPS, rel=1e-6)
    if export.FORMATS[format].read is not None:
        np.testing.assert_allclose(export.load(path).joints, joints, atol=1e-4)
