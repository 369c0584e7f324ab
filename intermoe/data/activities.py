"""What people do in the clips of a folder, where its ``items.json`` says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intermoe.reading import numbered_lines, read_json

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


def shipped_wordings(name: str, purpose: str) -> Path:
    """The file of this name, or the one that ships for data of this name and this purpose, wordings or paraphrases."""
    by_name = Path(__file__).parent / f"{name}_{purpose}.tsv"
    return by_name if by_name.is_file() and not Path(name).is_file() else Path(name)


def read_wordings(path: str | Path) -> dict[str, list[str]]:
    """Captions by activity from lines of an activity, a tabulator and a caption; a line that begins with # is none.

    Raises:
        ValueError: a line of another form, one that is there twice, or no line; names file and line. OSError: no such
            file.
    """
    found: dict[str, list[str]] = {}
    lines: dict[tuple[str, ...], int] = {}
    for number, line in numbered_lines(path):
        if line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise ValueError(
                f"{path}: line {number}: expected an activity, a tabulator and a caption, got {line!r:.80}"
            )
        if (first := lines.setdefault(tuple(parts), number)) != number:
            raise ValueError(f"{path}: line {number}: expected a caption of its own, got that of line {first} again")
        found.setdefault(parts[0], []).append(parts[1])
    if not found:
        raise ValueError(f"{path}: expected lines of an activity, a tabulator and a caption, got none")
    return found
