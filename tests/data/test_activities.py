"""What people do in a folder's clips, read from its ``items.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intermoe.data.activities import activities, shipped_wordings, tagged_activity


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


def test_a_folder_is_called_by_its_own_name_wherever_it_is_seen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dances").mkdir()
    monkeypatch.chdir(tmp_path / "dances")
    assert activities(Path(), ["1"]) == ["dances"]


@pytest.mark.parametrize("entry", [None, [], {"tags": "bow"}, {"tags": {"activity": 3}}, {"activity": "bow"}])
def test_an_entry_without_a_word_for_it_is_of_no_activity(entry: object) -> None:
    assert tagged_activity(entry) is None
    assert tagged_activity({"tags": {"activity": "bow"}}) == "bow"


@pytest.mark.parametrize("purpose", ["wordings", "paraphrases"])
def test_what_ships_is_found_by_name_and_purpose(purpose: str) -> None:
    assert shipped_wordings("duets", purpose).name == f"duets_{purpose}.tsv"
