"""A format of somebody else's: the number of frames, and nothing more."""

from pathlib import Path

from intermoe.export import Format, Take


def _write(paths: list[Path], take: Take) -> None:
    paths[0].write_text(str(take.joints.shape[1]), encoding="utf-8")


FORMAT = Format(suffix=".toy", write=_write)
