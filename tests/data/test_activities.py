"""What people do in a folder's clips, read from its ``items.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intermoe.data.activities import activities


def test_a_tag_comes_before_the_source_and_this_before_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dances"
    folder.mkdir()
    assert activities(folder, ["1"]) == ["dances"]
    entries = [
        {"name": "1", "tags": {"activity": "bow"}, "source": "duets"},
        {"name": "2", "tags": [], "source": "salsa"},
        {"name": "3", "tags": {"facing": "apart"}},
    ]
    (folder / "items.json").write_text(json.dumps(entries), encoding="utf-8")
    assert activities(folder, ["2", "1", "3", "4"]) == ["salsa", "bow", "dances", "dances"]


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"tags": {}}]'])
def test_another_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "items.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"items.json: expected a list of entries with a name"):
        activities(tmp_path, ["1"])
