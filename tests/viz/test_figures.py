"""Camera, body and drawn frames."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.viz.body import SKIN, build_body
from intermoe.viz.camera import frame_motion
from intermoe.viz.figures import PERSON_COLOURS, Scene, _wrap

pytest.importorskip("PIL")

# A standing body, Y up, facing Z+, left at X+.
STANDING = np.array(
    [
        [0.0, 0.95, 0.0], [0.1, 0.88, 0.0], [-0.1, 0.88, 0.0], [0.0, 1.06, 0.0], [0.1, 0.5, 0.0], [-0.1, 0.5, 0.0],
        [0.0, 1.18, 0.0], [0.1, 0.08, 0.0], [-0.1, 0.08, 0.0], [0.0, 1.24, 0.0], [0.1, 0.02, 0.12], [-0.1, 0.02, 0.12],
        [0.0, 1.45, 0.0], [0.06, 1.38, 0.0], [-0.06, 1.38, 0.0], [0.0, 1.53, 0.0], [0.17, 1.4, 0.0], [-0.17, 1.4, 0.0],
        [0.2, 1.12, 0.0], [-0.2, 1.12, 0.0], [0.22, 0.88, 0.0], [-0.22, 0.88, 0.0],
    ]
)  # fmt: skip


def walk(offsets: list[tuple[float, float]], frames: int = 5, pace: float = 0.05) -> np.ndarray:
    """Persons at ``offsets`` in x, z that glide along x."""
    joints = np.stack([STANDING + np.array([x, 0, z]) for x, z in offsets])[:, None].repeat(frames, axis=1)
    joints[..., 0] += pace * np.arange(frames)[:, None]
    return joints


PAIR = walk([(0.0, 0.0), (0.0, 1.0)])


class TestCamera:
    @pytest.mark.parametrize("offsets", [[(0, 0), (0, 1)], [(0, 0), (3, -2)], [(50, 40), (50, 40)], [(0, 0)]])
    def test_whole_motion_is_in_view(self, offsets: list[tuple[float, float]]) -> None:
        joints = walk(offsets, pace=0.3)
        camera = frame_motion(joints, (10, 60, 310, 300))
        pixels, depth = camera.project(joints)
        assert (depth > 1).all()
        assert (pixels >= (10, 60)).all()
        assert (pixels <= (310, 300)).all()

    def test_axes_are_equal_and_level(self) -> None:
        camera = frame_motion(PAIR, (0, 0, 300, 300))
        np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
        assert camera.axes[0, 1] == 0
        middle = PAIR.reshape(-1, 3).mean(0)
        length = 0.1 * camera.axes[:2]
        pixels, _ = camera.project(middle + np.concatenate([length, -length]))
        across, along = np.linalg.norm(pixels[:2] - pixels[2:], axis=1)
        assert across == pytest.approx(along, rel=1e-6)

    @pytest.mark.parametrize("angle", [0.0, 0.7, 1.6, 3.0])
    def test_persons_stand_beside_each_other(self, angle: float) -> None:
        joints = walk([(0, 0), (np.cos(angle), np.sin(angle))], pace=0)
        camera = frame_motion(joints, (0, 0, 300, 300))
        _, depth = camera.project(joints[:, 0, 0])
        assert depth[0] == pytest.approx(depth[1], abs=1e-6)

    def test_floor_grid_inverts_the_projection(self) -> None:
        camera = frame_motion(PAIR, (0, 0, 300, 300))
        first, x, z = camera.floor_grid(300, 300)
        assert x.shape == z.shape == (300 - first, 300)
        rows, columns = np.array([first + 5, 299]), np.array([3, 250])
        places = np.stack([x[rows - first, columns], np.zeros(2), z[rows - first, columns]], axis=-1)
        pixels, _ = camera.project(places.astype(np.float64))
        np.testing.assert_allclose(pixels, np.stack([columns, rows], axis=-1) + 0.5, atol=1e-2)


class TestBody:
    def test_face_looks_ahead(self) -> None:
        body = build_body(STANDING[None, None])
        face = body.ends[0, 0, -1, 0]
        assert body.tones[-1] == SKIN
        assert face[2] > 0.05  # the body faces Z+
        assert face[1] > STANDING[:, 1].max()

    def test_every_bone_is_there(self) -> None:
        body = build_body(PAIR)
        assert body.ends.shape == (2, 5, len(body.radii), 2, 3)
        assert {tuple(np.round(end, 6)) for end in body.ends[0, 0, :21, 1]} == {tuple(j) for j in STANDING[1:].round(6)}


class TestScene:
    def test_frames_show_both_persons(self) -> None:
        frames = list(Scene(PAIR, "two people stand", size=(384, 320)).frames())
        assert len(frames) == 5
        for frame in frames:
            assert frame.shape == (320, 384, 3)
            assert frame.dtype == np.uint8
            figures = frame[60:].reshape(-1, 3).astype(int)
            for colour in PERSON_COLOURS[:2]:
                assert (np.abs(figures - colour).sum(1) < 30).sum() > 50

    def test_frames_differ_and_repeat(self) -> None:
        scene = Scene(PAIR, size=(160, 160))
        assert not np.array_equal(scene.frame(0), scene.frame(4))
        np.testing.assert_array_equal(scene.frame(2), Scene(PAIR, size=(160, 160)).frame(2))

    @pytest.mark.parametrize("front", [0, 1])
    def test_nearer_person_covers_the_farther(self, front: int) -> None:
        joints = walk([(0, 0), (0, 1)], frames=9, pace=0)  # the camera looks along x ...
        joints[:, -1] = walk([(0.3, 0), (-0.3, 0)], frames=1, pace=0)[:, 0]  # ... along which they stand at the end
        camera = frame_motion(joints, (0, 0, 320, 320))
        _, depth = camera.project(joints[:, -1, 0])
        if int(depth.argmin()) != front:
            joints = joints[::-1]
        scene = Scene(joints, size=(320, 320))
        pixels, _ = scene._camera.project(joints[front, -1, 6])
        column, row = (pixels / 2).astype(int)
        seen = scene.frame(8)[row, column].astype(int)
        distance = [np.abs(seen - colour).sum() for colour in PERSON_COLOURS[:2]]
        assert int(np.argmin(distance)) == front

    @pytest.mark.parametrize(
        "caption",
        ["", "word " * 200, "x" * 500, "两个人 握手 Café ‏עברית", "a\nb\tc"],
        ids=["empty", "many words", "one long word", "other scripts", "control characters"],
    )
    def test_any_caption_is_drawn(self, caption: str) -> None:
        assert Scene(PAIR, caption, size=(160, 160)).frame(0).shape == (160, 160, 3)

    def test_extreme_poses_are_drawn(self) -> None:
        jump = PAIR.copy()
        jump[0, :, :, 1] += 4.0
        jump[1, :, :, 1] -= 0.5
        assert Scene(jump, size=(160, 160)).frame(0).any()
        assert Scene(np.zeros((2, 1, 22, 3)), size=(160, 160)).frame(0).any()

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="joints: expected shape"):
            Scene(PAIR[..., :21, :])
        with pytest.raises(ValueError, match="joints: expected shape"):
            Scene(PAIR[:, :0])
        with pytest.raises(ValueError, match="joints: expected finite"):
            Scene(np.where(np.arange(3) == 1, np.nan, PAIR))
        with pytest.raises(ValueError, match="size: expected"):
            Scene(PAIR, size=(161, 160))


@pytest.mark.parametrize(("fps", "clock"), [(30, "0.4 s"), (10, "1.2 s"), (12.5, "1.0 s")])
def test_a_picture_says_what_is_done_who_is_who_and_when(
    fps: float, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL.ImageDraw import ImageDraw

    written: list[str] = []
    monkeypatch.setattr(ImageDraw, "text", lambda pen, place, text, **how: written.append(text))
    scene = Scene(walk([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)], frames=20), "they bow", fps=fps, size=(320, 320))
    assert written == ["they bow", "person 1", "person 2", "person 3"] * 2  # in light and in shadow
    written.clear()
    scene.frame(12)
    assert written == [clock]


def test_a_caption_of_a_megabyte_is_cut_without_being_measured_whole() -> None:
    measured: list[int] = []

    class Font:
        size = 10

        def getlength(self, text: str) -> float:
            measured.append(len(text))
            return 6.0 * len(text)

    for caption in ("w " * 500_000, "w" * 1_000_000):
        lines = _wrap(caption, Font(), 320)
        assert lines[-1].endswith("…")
        assert all(6 * len(line) <= 320 for line in lines)
    assert len(measured) < 2000
