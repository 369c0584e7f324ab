"""What ffmpeg and Pillow are told of an animation, and grids of several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from intermoe.viz import Grid, video
from intermoe.viz.video import check_rate, save_gif, save_mp4

Image = pytest.importorskip("PIL.Image")


class Noise:
    """Frames of other numbers each."""

    size, fps = (6, 4), 12.5

    def __init__(self, frames: int = 3) -> None:
        self._frames = np.random.default_rng(0).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> np.ndarray:
        return self._frames[index]

    def frames(self) -> Iterator[np.ndarray]:
        return iter(self._frames)


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a program in ffmpeg's place, which keeps its arguments and what it is given."""
    pytest.importorskip("imageio_ffmpeg")
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable} -SE\nimport os, sys\nhere = {str(tmp_path)!r}\n"
        "open(here + '/arguments', 'w').write('\\n'.join(sys.argv[1:]))\n"
        "open(here + '/given', 'wb').write(sys.stdin.buffer.read())\n"
        "if not os.path.exists(here + '/lazy'): open(sys.argv[-1], 'w').write('a video')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    return tmp_path


def test_all_that_ffmpeg_is_told(ffmpeg: Path) -> None:
    """Size and rate of raw frames, and an H.264 file that begins to play before it is there and plays everywhere."""
    (ffmpeg / "out").mkdir()
    save_mp4(ffmpeg / "out" / "a.mp4", Noise())
    *arguments, file = (ffmpeg / "arguments").read_text().split("\n")
    assert " ".join(arguments) == (
        "-y -v error -f rawvideo -pix_fmt rgb24 -s 6x4 -r 12.5 -i - -c:v libx264 -pix_fmt yuv420p -preset veryfast "
        "-crf 20 -threads 1 -movflags +faststart"
    )
    assert Path(file).parent == ffmpeg / "out"
    assert file.endswith(".mp4")
    assert (ffmpeg / "given").read_bytes() == b"".join(frame.tobytes() for frame in Noise().frames())
    assert [path.name for path in (ffmpeg / "out").iterdir()] == ["a.mp4"]
    assert (ffmpeg / "out" / "a.mp4").read_text() == "a video"


def test_an_ffmpeg_that_makes_nothing_has_failed(ffmpeg: Path) -> None:
    (ffmpeg / "lazy").touch()
    told = "^mp4: expected ffmpeg to end well, got exit code 0: it said nothing$"
    with pytest.raises(OSError, match=told):
        save_mp4(ffmpeg / "a.mp4", Noise())
    assert not (ffmpeg / "a.mp4").exists()


def test_rates_that_a_video_can_have(tmp_path: Path) -> None:
    for fps in (0.01, 1, 1000):
        check_rate(fps)
    for fps in (0.0099, 1001, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^fps: expected 0\.01 to 1000 frames a second in a video, got "):
            check_rate(fps)
        animation = Noise()
        animation.fps = fps
        for save in (save_gif, save_mp4):
            with pytest.raises(ValueError, match=r"^fps: expected"):
                save(tmp_path / "a", animation)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_has_the_colours_of_its_middle_in_areas_of_one_colour_each(tmp_path: Path) -> None:
    """What the middle frame lacks becomes the nearest that it has; all of an area, not every other pixel of it."""

    class Plain(Noise):
        size, fps = (32, 16), 10

        def frame(self, index: int) -> np.ndarray:
            picture = np.zeros((16, 32, 3), dtype=np.uint8)
            picture[:, index] = 255
            picture[:, 16:] = ((110, 110, 110), (200, 140, 120), (255, 255, 255), (30, 100, 60))[index]
            return picture

    save_gif(tmp_path / "a.gif", Plain(4))
    with Image.open(tmp_path / "a.gif") as picture:
        found = []
        for index in range(picture.n_frames):
            picture.seek(index)
            pixels = np.asarray(picture.convert("RGB"))
            assert len(np.unique(pixels[:, 16:].reshape(-1, 3), axis=0)) == 1
            assert np.flatnonzero(pixels[0, :16].any(-1)).tolist() == [index]
            found.append(pixels[0, 16].tolist())
    assert found == [[shade] * 3 for shade in (0, 255, 255, 0)]


def test_columns_of_a_grid() -> None:
    """A square, or one column more than rows; never more than there are motions."""
    for scenes, columns, size in ((1, None, (6, 4)), (2, None, (12, 4)), (5, None, (18, 8)), (10, None, (24, 12))):
        assert Grid([Noise()] * scenes, columns).size == size
    for scenes, columns, size in ((5, 1, (6, 20)), (5, 2, (12, 12)), (2, 5, (12, 4))):
        assert Grid([Noise()] * scenes, columns).size == size
    grid = Grid([Noise(), Noise(2)])
    assert (grid.fps, len(grid)) == (12.5, 3)
    np.testing.assert_array_equal(grid.frame(2), np.concatenate([Noise().frame(2), Noise(2).frame(1)], axis=1))
    faster = Noise()
    faster.fps = 25
    with pytest.raises(
        ValueError, match=r"^scenes: expected one size and rate, got \[\(\(6, 4\), 12\.5\), \(\(6, 4\), 25\)\]$"
    ):
        Grid([Noise(), faster])


def test_a_video_of_a_drawing_that_fails_ends_its_ffmpeg(ffmpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = video.subprocess.Popen
    monkeypatch.setattr(begin, "wait", partialmethod(begin.wait, timeout=20))  # it waits for more until it is ended
    monkeypatch.setattr(
        video.subprocess, "Popen", lambda *given, **how: (made.append(begin(*given, **how)), made[0])[1]
    )

    class Broken(Noise):
        def frames(self) -> Iterator[np.ndarray]:
            yield self.frame(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_mp4(ffmpeg / "a.mp4", Broken())
    assert made[0].returncode == -9
    assert not (ffmpeg / "a.mp4").exists()


def test_a_video_without_ffmpeg_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    told = r"^imageio-ffmpeg is needed for mp4: pip install 'intermoe\[viz\]'$"
    with pytest.raises(ModuleNotFoundError, match=told):
        save_mp4(tmp_path / "a.mp4", Noise())
    assert list(tmp_path.iterdir()) == []
