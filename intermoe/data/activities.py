"""What people do in the clips of a folder, where its ``items.json`` says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intermoe.reading import read_json

ITEMS = "items.json"


def tagged_activity(entry: Any) -> str | None:
    """The activity that one entry of ``items.json`` is tagged with, or ``None``."""
    tags = entry.get("tags") if isinstance(entry, dict) else None
    activity = tags.get("activity") if isinstance(tags, dict) else None
    return activity if isinstance(activity, str) else None


def activities(root: Path, names: Sequence[str]) -> list[str]:
    """The activity of each clip: its tag in ``items.json``, else the source that it has there, else the folder's name.

    Raises:
        ValueError: an ``items.json`` that is no list of entries with names.
    """
    path = root / ITEMS
    entries: dict[str, Any] = {}
    if path.is_file():
        listed = read_json(path)
        if not isinstance(listed, list) or not all(isinstance(each, dict) and "name" in each for each in listed):
            raise ValueError(f"{path}: expected a list of entries with a name, got something else")
        entries = {str(each["name"]): each for each in listed}
    folder = root.resolve().name
    return [tagged_activity(entries.get(name)) or str(entries.get(name, {}).get("source", folder)) for name in names]
