"""From every kind of file that is read into every kind that is written, and onto a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import export
from intermoe.cli import app
from intermoe.motion.rig import REST_POSE, at_rest

FRAMES = 12
READ = ("npz", "bvh", "amass", "interhuman")
pytest.importorskip("viser", reason="pages are viser's")


@pytest.fixture(params=READ)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """The files of one motion of two people, of the data's own where the kind is not one that we write."""
    folder = tmp_path / "in"
    folder.mkdir()
    if request.param != "interhuman":
        steps = np.arange(FRAMES)[:, None, None] * (0.02, 0.0, 0.01)
        joints = np.stack([at_rest(REST_POSE) + steps + (x, 0.95, 0) for x in (-0.6, 0.6)])
        return export.save(folder / f"bow{export.FORMATS[request.param].suffix}", joints)
    given = request.getfixturevalue("salsa") / "motions_processed"
    for person in ("person1", "person2"):
        (folder / person).mkdir()
        np.save(folder / person / "101.npy", np.load(given / person / "101.npy")[:FRAMES])
    return [folder / "person1" / "101.npy"]


@pytest.mark.parametrize("format", export.written())
def test_it_becomes_every_other(files: list[Path], format: str, tmp_path: Path) -> None:
    before = export.load(files)
    arguments = [*map(str, files), "--format", format, "--out", str(tmp_path / "out"), "--size", "128x128"]
    done = CliRunner().invoke(app, ["export", *arguments])
    assert done.exit_code == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths
    assert all(path.stat().st_size > 100 for path in paths)
    if format in READ:
        after = export.load(paths)
        assert (after.fps, after.joints.shape) == (pytest.approx(before.fps), before.joints.shape)
        assert np.linalg.norm(after.joints - before.joints, axis=-1).max() < 1e-3
    else:
        refused = CliRunner().invoke(app, ["export", str(paths[0]), "--format", "npz", "--out", str(tmp_path)])
        assert refused.exit_code == 2
        assert ".npz, .bvh" in refused.stderr
        assert paths[0].name in refused.stderr


def test_it_is_seen_on_a_page(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one person each are motions side by side; the name without the person is the motion of both."""
    from intermoe.viz.viewer import Viewer

    shown: list[int] = []

    def seen(viewer: Viewer) -> None:
        viewer.show(0.2)
        shown.extend(len(cast.people) for cast in viewer._casts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "run", seen)
    both = files[0].with_name(files[0].name.replace(".person1", ""))
    done = CliRunner().invoke(app, ["view", str(both), str(files[0]), "--port", "0"])
    assert done.exit_code == 0, done.stderr
    assert shown == [2, 1 if len(files) > 1 else 2]
