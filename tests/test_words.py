"""What serves every system names none: the words of systems stay in their folders, recipes and published rows."""

from __future__ import annotations

from pathlib import Path

import intermoe
from intermoe.pipeline import SYSTEMS

PACKAGE = Path(intermoe.__file__).parent
FOLDERS = ("cli", "eval", "control", "export", "viz")


def named(text: str) -> list[str]:
    """The systems beside ours that a text names."""
    return [name for name in SYSTEMS if name != "intermoe" and name in text.lower()]


def test_no_system_is_named_where_all_are_served() -> None:
    files = [path for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 40
    found = {str(path.relative_to(PACKAGE)): words for path in files if (words := named(path.read_text("utf-8")))}
    assert not found


def test_a_name_would_be_seen() -> None:
    assert named('"""ComMDM\'s numbers."""') == ["mdm", "commdm"]
    assert named((PACKAGE / "pipeline" / "models.py").read_text("utf-8")) == [
        name for name in SYSTEMS if name != "intermoe"
    ]
