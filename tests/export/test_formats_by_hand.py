"""Saving and loading, whatever the format: names of files, what is handed on, other rates, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export import video
from intermoe.export.format import Format
from intermoe.viz.colours import INK

RNG = np.random.default_rng(0)
JOINTS = RNG.uniform(0.1, 1, (2, 5, 22, 3)).astype(np.float32)
MOTION = RNG.uniform(size=(2, 5, 262)).astype(np.float32)
MOTION[..., :66] = JOINTS.reshape(2, 5, 66)


def test_all_that_is_said_of_a_motion_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []
    monkeypatch.setattr(export, "save_take", lambda path, take: (handed.append((path, take)), [Path("made")])[1])
    view = export.View("top", (320, 200))
    made = export.save(tmp_path / "a.glb", JOINTS, 12.5, ["Bo", "Ann"], "they bow", motion=MOTION, view=view)
    export.save("b.npz", JOINTS[:1])
    (path, take), (_, plain) = handed
    assert (made, path) == ([Path("made")], tmp_path / "a.glb")
    assert (take.fps, take.names, take.prompt, take.view) == (12.5, ("Bo", "Ann"), "they bow", view)
    np.testing.assert_array_equal(take.joints, JOINTS)
    np.testing.assert_array_equal(take.motion, MOTION)
    assert (plain.fps, plain.names, plain.prompt, plain.motion) == (30, ("person 1",), "", None)
    assert plain.view == export.View("side", (640, 640))


def test_files_are_named_by_person_where_each_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written beside each other: as many files as persons, numbered from 1; the suffix in whatever case."""
    given: list[Any] = []
    formats = {
        "own": Format(".own.toy", lambda paths, take: given.append((paths, take)), per_person=True),
        "one": Format(".toy", lambda paths, take: given.append((paths, take))),
    }
    monkeypatch.setattr(export, "FORMATS", formats)
    take = export.Take(JOINTS)
    paths = [tmp_path / f"a.b.person{number}.own.toy" for number in (1, 2)]
    assert export.save_take(tmp_path / "a.b.OWN.toy", take) == paths
    assert export.save_take(tmp_path / "a.b.own.toy", export.Take(JOINTS[:1])) == [tmp_path / "a.b.own.toy"]
    assert export.save_take(str(tmp_path / "a.toy"), take) == [tmp_path / "a.toy"]
    assert given[0] == (paths, take)
    assert [len(paths) for paths, _ in given] == [2, 1, 1]
    assert export.suffixes_of(formats["own"], 3) == [".person1.own.toy", ".person2.own.toy", ".person3.own.toy"]
    with pytest.raises(ValueError, match=r"^clip: expected a suffix of \.own\.toy, \.toy, got a\.npz$"):
        export.format_of("a.npz", "clip")


def test_what_a_format_refuses_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(take: Any) -> None:
        asked.append(take)
        raise ValueError("too long")

    written: list[Any] = []
    picky = Format(".toy", lambda *given: written.append(given), refuse=refuse)
    monkeypatch.setattr(export, "FORMATS", {"toy": picky})
    take = export.Take(JOINTS)
    with pytest.raises(ValueError, match=r"^too long$"):
        export.save_take(tmp_path / "a.toy", take)
    assert (asked, written) == ([take], [])
    picky.check()  # of no motion there is nothing to refuse
    poor = Format(".own.toy", lambda *_: None, needs=("json", "no_such_module"), extra="own")
    with pytest.raises(ModuleNotFoundError, match=r"^own\.toy: needs no_such_module: pip install 'intermoe\[own\]'$"):
        poor.check()
    assert Format(".toy").extra == "viz"


def test_formats_say_what_they_are() -> None:
    """Suffix, directions, whether each person has a file, and what writing needs."""
    told = {
        name: (
            each.suffix, each.write is not None, each.read is not None, each.per_person, each.needs, each.extra,
            each.refuse is not None, each.partners is not None,
        )
        for name, each in ((name, export.FORMATS[name]) for name in export.FORMATS)
    }  # fmt: skip
    assert told == {
        "npz": (".npz", True, True, False, (), "viz", False, False),
        "bvh": (".bvh", True, True, True, (), "viz", False, False),
        "glb": (".glb", True, False, False, (), "viz", False, False),
        "amass": (".amass.npz", True, True, True, (), "viz", False, False),
        "interhuman": (".npy", False, True, True, (), "viz", False, True),
        "html": (".html", True, False, False, ("viser", "trimesh"), "view", False, False),
        "mp4": (".mp4", True, False, False, ("PIL", "imageio_ffmpeg"), "viz", True, False),
        "gif": (".gif", True, False, False, ("PIL",), "viz", True, False),
    }
    assert export.written() == ("npz", "bvh", "glb", "amass", "html", "mp4", "gif")
    assert export.format_of("x/A.B.AMASS.npz") is export.FORMATS["amass"]
    assert export.format_of("x/amass.npz") is export.FORMATS["npz"]


def test_a_free_stem_is_free_of_the_files_of_each_person_too(tmp_path: Path) -> None:
    (tmp_path / "they-bow.person1.bvh").touch()
    (tmp_path / "they-bow-2.glb").touch()
    for formats, name in (
        (("bvh",), "they-bow-2"),
        (("glb",), "they-bow"),
        (("npz",), "they-bow"),
        (None, "they-bow-3"),
    ):
        with export.free_stem(tmp_path, "They bow", formats) as stem:
            assert stem == tmp_path / name


def test_a_slug_of_just_the_length_is_whole() -> None:
    for words in ("abcd " + "abc " * 11, "ab " * 15 + "abc"):
        assert len("-".join(words.split())) == 48
        assert export.slug(words) == "-".join(words.split())
    assert export.slug("ab " * 16 + "c") == "ab-ab-ab-ab-ab-ab-ab-ab--ab-ab-ab-ab-ab-ab-ab-c"


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Folder of one motion as .npz, and as .bvh of each person with a third that does not follow the second."""
    export.save_take(tmp_path / "a.npz", export.Take(JOINTS, 24, ("Bo", "Ann"), "bow", MOTION, details={"seed": 3}))
    standing = np.tile(_standing(), (2, 5, 1, 1)) + np.arange(2)[:, None, None, None]
    export.save(tmp_path / "b.bvh", standing, 24)
    (tmp_path / "b.person4.bvh").write_bytes((tmp_path / "b.person1.bvh").read_bytes())
    return tmp_path


def _standing() -> np.ndarray:
    from intermoe.motion.rig import REST_POSE, at_rest

    return at_rest(REST_POSE) + np.array([0.0, 0.95, 0.0])


def test_files_of_persons_are_found_one_after_the_other(pair: Path) -> None:
    take = export.load(pair / "b.bvh")
    assert take.joints.shape[0] == 2
    np.testing.assert_allclose(take.joints[1] - take.joints[0], 1, atol=1e-5)
    assert export.load([pair / "b.person2.bvh"]).joints.shape[0] == 1
    np.testing.assert_allclose(
        export.load([pair / "b.person2.bvh", str(pair / "b.person1.bvh")]).joints, take.joints[::-1], atol=1e-6
    )


def test_what_cannot_be_loaded_is_named_as_it_was_given(pair: Path) -> None:
    (pair / "c.person1.npz").touch()
    for files, told in (
        ([], "^clip: expected at least one file, got none$"),
        (
            [pair / "b.person1.bvh", pair / "a.npz"],
            r"^clip: expected files of one format, got .*person1\.bvh, .*a\.npz$",
        ),
        (
            [pair / "a.npz", pair / "b.person1.bvh"],
            r"^clip: expected files of one format, got .*a\.npz, .*person1\.bvh$",
        ),
        ([pair / "a.npz"] * 2, r"^clip: expected one \.npz file, which holds all persons, got 2$"),
        ([pair / "b.person1.bvh"] * 2, "^clip: expected different files, one per person, got "),
        (pair / "a.fbx", r"^clip: expected a suffix of \.npz, \.bvh, \.glb, .*, got .*a\.fbx$"),
        (pair / "a.glb", r"^clip: expected a file to read of \.npz, \.bvh, \.amass\.npz, \.npy, got .*a\.glb$"),
    ):
        with pytest.raises(ValueError, match=told):
            export.load(files, name="clip")
    for name in ("c.npz", "d.bvh"):
        with pytest.raises(FileNotFoundError, match=f"^no such file: {re.escape(str(pair / name))}$"):
            export.load(pair / name)
    for fps in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"^fps: expected a positive number, got {fps}$"):
            export.load(pair / "a.npz", fps=fps)


def test_at_its_own_rate_a_motion_is_as_it_is(pair: Path) -> None:
    for fps in (None, 24):
        take = export.load(pair / "a.npz", fps)
        np.testing.assert_array_equal(take.motion, MOTION)
        np.testing.assert_array_equal(take.joints, JOINTS)
        assert take.fps == 24


def test_at_another_rate_joints_lie_between_those_around_them(pair: Path) -> None:
    """Four 24ths of a second have five moments at 30 a second: 0, 0.8, 1.6, 2.4, 3.2, 4 of the first rate."""
    take = export.load(pair / "a.npz", 30)
    assert (take.fps, take.names, take.prompt, take.motion, take.details) == (
        30,
        ("Bo", "Ann"),
        "bow",
        None,
        {"seed": 3},
    )
    wanted = [
        JOINTS[:, 0], 0.2 * JOINTS[:, 0] + 0.8 * JOINTS[:, 1], 0.4 * JOINTS[:, 1] + 0.6 * JOINTS[:, 2],
        0.6 * JOINTS[:, 2] + 0.4 * JOINTS[:, 3], 0.8 * JOINTS[:, 3] + 0.2 * JOINTS[:, 4], JOINTS[:, 4],
    ]  # fmt: skip
    np.testing.assert_allclose(take.joints, np.stack(wanted, axis=1), atol=1e-6)
    np.testing.assert_allclose(export.load(pair / "a.npz", 10).joints[:, 1], wanted[3], atol=1e-6)
    assert export.load(pair / "a.npz", 10).joints.shape[1] == 2  # the moment after them is over


def test_a_rate_may_make_so_many_frames_and_no_more(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four 24ths of a second at 120 frames a second have 20 of them after the first."""
    monkeypatch.setattr(export, "MOST_FRAMES", 20)
    assert export.load(pair / "a.npz", 120).joints.shape[1] == 21
    told = r"a\.npz: fps: expected a rate of at most 20 frames in all, got 121 for 24$"
    with pytest.raises(ValueError, match=told):
        export.load(pair / "a.npz", 121)


def test_a_video_is_given_all_that_a_take_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body on the floor, what is done, how fast, how large and from where."""
    drawn: list[Any] = []
    saved: list[Any] = []
    monkeypatch.setattr(video, "Scene", lambda *given, **how: (drawn.append((given, how)), "scene")[1])
    monkeypatch.setattr(video, "save_mp4", lambda *given: saved.append(("mp4", *given)))
    monkeypatch.setattr(video, "save_gif", lambda *given: saved.append(("gif", *given)))
    joints = RNG.uniform(1, 2, (3, 4, 24, 3))
    take = export.Take(joints, 12.5, prompt="they bow", view=export.View("top", (320, 200)))
    assert video.MP4.write is not None
    assert video.GIF.write is not None
    video.MP4.write([Path("a.mp4")], take)
    video.GIF.write([Path("a.gif")], take)
    assert saved == [("mp4", Path("a.mp4"), "scene"), ("gif", Path("a.gif"), "scene")]
    for (body, caption), how in drawn:
        np.testing.assert_array_equal(body, take.body)
        assert body[..., 1].min() == 0
        assert caption == "they bow"
        assert how == {"fps": 12.5, "size": (320, 200), "camera": "top"}


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_a_video_is_of_at_most_four_persons_at_a_rate_that_it_can_have(format: str) -> None:
    refuse = export.FORMATS[format].refuse
    assert refuse is not None
    four = RNG.uniform(size=(4, 1, 22, 3))
    for fps in (0.01, 30, 1000):
        refuse(export.Take(four, fps))
    for fps in (0.009, 1001):
        with pytest.raises(ValueError, match=f"^fps: expected 0.01 to 1000 frames a second in a video, got {fps:g}$"):
            refuse(export.Take(four, fps))
    with pytest.raises(ValueError, match=r"^persons: expected at most 4 in a video, got 5$"):
        refuse(export.Take(four[[0, 1, 2, 3, 0]]))


class Told:
    """A server that keeps, in order, what it is told; its page has more than one title and end."""

    TEXT = "<html><head><title>a</title><title>b</title></head><body>x</body></head>y</body>z</html>"

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.scene = object()

    def __enter__(self) -> Told:
        self.calls.append("begin")
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")

    def atomic(self) -> Told:
        return self

    def get_scene_serializer(self) -> Any:
        self.calls.append("record")
        return SimpleNamespace(
            insert_sleep=lambda seconds: self.calls.append(seconds),
            as_html=lambda: (self.calls.append("text"), self.TEXT)[1],
        )


def test_a_page_is_recorded_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is shown, then stays as long as it lasts; of more persons than colours the first ones' come again."""
    pytest.importorskip("viser", reason="pages of figures need viser")
    from intermoe.export import html
    from intermoe.viz.browser import file_head

    server, bodies = Told(), []
    monkeypatch.setattr(html, "serving", lambda: server)
    monkeypatch.setattr(html, "set_stage", lambda _, body, camera: server.calls.append(("stage", camera, body)))

    class Figures:
        def __init__(self, scene: Any, body: Any, names: Any) -> None:
            assert scene is server.scene
            bodies.append((body, names))

        def __len__(self) -> int:
            return 3

        def show(self, frame: int) -> None:
            server.calls.append(f"frame {frame}")

    monkeypatch.setattr(html, "Figures", Figures)
    take = export.Take(
        RNG.uniform(1, 2, (5, 3, 24, 3)), 8, ("A & B", "C", "D", "E", "F"), "<go>", view=export.View("top")
    )
    text = html.page(take)
    (stage,) = (call for call in server.calls if isinstance(call, tuple))
    assert stage[:2] == ("stage", "top")
    for body in (stage[2], bodies[0][0]):
        np.testing.assert_array_equal(body, take.body)
    assert bodies[0][1] == take.names
    frames = [step for number in range(3) for step in (f"frame {number}", 0.125)]
    assert [call for call in server.calls if not isinstance(call, tuple)] == [
        "begin", "begin", "record", *frames, "text", "end", "end",
    ]  # fmt: skip
    colours = ("(36, 104, 216)", "(238, 112, 28)", "(46, 152, 88)", "(150, 76, 190)", "(36, 104, 216)")
    people = "".join(
        f'<span><i style="background: rgb{colour}"></i>{name}</span>'
        for colour, name in zip(colours, ("A &amp; B", "C", "D", "E", "F"), strict=True)
    )
    style = re.search("<style>\n#caption.*</style>", text, re.DOTALL)
    assert style is not None
    assert text == (
        f"<html><head><title>&lt;go&gt;</title><title>b</title>{file_head()}{style[0]}</head>"
        f'<body>x</body></head>y<div id="caption"><p>&lt;go&gt;</p>{people}</div></body>z</html>'
    )
    rules = dict(re.findall(r"(#caption[ \w]*) \{(.*?)\}", style[0], re.DOTALL))
    assert "pointer-events: none" in rules["#caption"], "the mouse turns the camera behind words as well"
    assert "position: fixed; z-index: 10; top: 0; left: 0; right: 0" in rules["#caption"]
    assert "font: 16px/1.35 " in rules["#caption"]
    assert "padding: 0.6em 0.8em;" in rules["#caption"]
    assert f"color: rgb{INK}" in rules["#caption"]
    assert "margin: 0 0 0.3em;" in rules["#caption p"]
    assert "margin-right: 1em; white-space: nowrap;" in rules["#caption span"]
    assert "margin-right: 0.4em;" in rules["#caption i"]
    # four lines of what is done, no more; a square in a person's colour as high as a small letter
    assert f"max-height: {4 * 1.35:g}em; overflow: hidden" in rules["#caption p"]
    assert "display: inline-block; width: 0.6em; height: 0.6em" in rules["#caption i"]
