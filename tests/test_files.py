"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermoe.files import replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 62 + "est.txt")  # 255 bytes, the most that file systems take
    path.write_text("before")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail_halfway()
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("after")
        temporary.chmod(0o600)
    assert path.read_text() == "after"
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "other").unlink()
    assert list(tmp_path.iterdir()) == [path]
