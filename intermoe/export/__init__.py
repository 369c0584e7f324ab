"""Motion for other programs: written by ``save``, read by ``load``, in the formats of ``FORMATS``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from intermoe.export import amass
from intermoe.export.format import Format
from intermoe.export.naming import output_stem, slug
from intermoe.export.take import Take
from intermoe.registry import Registry
from intermoe.viz.camera import View

__all__ = [
    "FORMATS",
    "Format",
    "Take",
    "View",
    "format_of",
    "free_stem",
    "load",
    "output_stem",
    "save",
    "save_take",
    "slug",
    "written",
]


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "npz": "intermoe.export.npz:FORMAT",
        "bvh": "intermoe.export.bvh:FORMAT",
        "glb": "intermoe.export.gltf:FORMAT",
        "amass": "intermoe.export.amass:FORMAT",
        "interhuman": "intermoe.export.interhuman:FORMAT",
        "html": "intermoe.export.html:FORMAT",
        "mp4": "intermoe.export.video:MP4",
        "gif": "intermoe.export.video:GIF",
    },
)
"""Every format by its name; a new one is a file with ``write``, ``read`` or both, and a line here."""


def written() -> tuple[str, ...]:
    """Names of the formats that can be written."""
    return tuple(name for name in FORMATS if FORMATS[name].write)


MOST_FRAMES = 10**6
"""What another rate may make of a file: nine hours at 30 a second."""


def _all() -> list[Format]:
    return [FORMATS[name] for name in FORMATS]


def format_of(path: str | Path, name: str = "path") -> Format:
    """The format that a path's suffix names. Raises ``ValueError`` that lists them; ``name`` is the path's in it."""
    fitting = [each for each in _all() if Path(path).name.lower().endswith(each.suffix)]
    if not fitting:
        raise ValueError(f"{name}: expected a suffix of {', '.join(each.suffix for each in _all())}, got {path}")
    return max(fitting, key=lambda each: len(each.suffix))


def free_stem(folder: str | Path, title: str, formats: Collection[str] | None = None) -> AbstractContextManager[Path]:
    """``folder/slug`` of a title, numbered where a file of that name and of one of ``formats`` (any) exists already.

    In ``with free_stem(...) as stem:`` no other process gets the same name.
    """
    formats = written() if formats is None else formats
    suffixes = [FORMATS[name].suffix for name in formats]
    numbered = [f".person1{FORMATS[name].suffix}" for name in formats if FORMATS[name].per_person]
    return output_stem(folder, title, [*suffixes, *numbered])


def save(
    path: str | Path,
    joints: npt.ArrayLike,
    fps: float = 30,
    names: Sequence[str] | None = None,
    prompt: str = "",
    *,
    motion: npt.ArrayLike | None = None,
    view: View | None = None,
) -> list[Path]:
    """Write one motion for other programs.

    Args:
        path: its suffix chooses the format: .npz, .bvh, .glb, .amass.npz, .html, .mp4 or .gif. Of formats with one file
            per person ``bow.bvh`` becomes ``bow.person1.bvh`` and so on, if there are several persons.
        joints: (P, T, 22, 3) metres, Y up.
        fps: frames a second.
        names: of the persons.
        prompt: what is done.
        motion: (P, T, 262) the motion in InterHuman's representation, if it is known: it tells the joints' rotations.
        view: how a video or a page looks at it.

    Returns:
        The paths that were written.

    Raises:
        ValueError: an unknown suffix, a wrong shape, a value that is not finite.
        ModuleNotFoundError: a package that the format needs is missing; says how to install it.
    """
    take = Take(
        cast(Any, joints),  # a take makes arrays of them, or refuses them by name
        fps,
        tuple(names or ()),
        prompt,
        cast(Any, motion),
        view=view or View(),
    )
    return save_take(path, take)


def save_take(path: str | Path, take: Take) -> list[Path]:
    """``save`` for a ``Take``, which holds all that a file may tell of a motion."""
    path, chosen = Path(path), format_of(path)
    if chosen.write is None:
        suffixes = ", ".join(FORMATS[name].suffix for name in written())
        raise ValueError(f"path: expected a suffix of {suffixes}, got {path}")
    stem = path.name[: -len(chosen.suffix)]
    paths = [path.with_name(stem + suffix) for suffix in suffixes_of(chosen, len(take.joints))]
    chosen.check(take)
    chosen.write(paths, take)
    return paths


def suffixes_of(chosen: Format, persons: int) -> list[str]:
    """What comes after the name of a motion of so many persons: of its one file, or of each person's."""
    if not chosen.per_person or persons < 2:
        return [chosen.suffix]
    return [f".person{number}{chosen.suffix}" for number in range(1, persons + 1)]


def load(path: str | Path | Sequence[str | Path], fps: float | None = None, *, name: str = "path") -> Take:
    """Read motion that ``save`` wrote, or that another program did.

    Args:
        path: an .npz, or .bvh or AMASS's .npz files, one per person. ``bow.bvh`` stands for ``bow.person1.bvh``,
            ``bow.person2.bvh`` and so on where there is no such file.
        fps: the rate wanted, if not the file's; joints are interpolated.
        name: what errors call the path: the option or the key that it was given by.

    Returns:
        Joints (P, T, 22, 3) in metres with Y up, their rate, and what else the files tell.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a format that cannot be read, a broken file, an unknown skeleton or unit; names file and reason.
    """
    if fps is not None and not 0 < fps < np.inf:
        raise ValueError(f"fps: expected a positive number, got {fps}")
    given = [Path(path)] if isinstance(path, (str, Path)) else [Path(each) for each in path]
    if not given:
        raise ValueError(f"{name}: expected at least one file, got none")
    formats = [_format_to_read(each, name) for each in given]
    chosen = formats[0]
    if chosen.read is None or any(each is not chosen for each in formats):
        raise ValueError(f"{name}: expected files of one format, got {', '.join(map(str, given))}")
    if len(given) > 1 and not chosen.per_person:
        raise ValueError(f"{name}: expected one {chosen.suffix} file, which holds all persons, got {len(given)}")
    if len(set(given)) < len(given):
        raise ValueError(f"{name}: expected different files, one per person, got {', '.join(map(str, given))}")
    paths = list(dict.fromkeys(file for each in given for file in _files(each, chosen)))
    take = chosen.read(paths)
    if fps is None or fps == take.fps:
        return take
    try:
        return _resampled(take, fps)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, paths))}: {error}") from error


def _format_to_read(path: Path, name: str) -> Format:
    chosen = format_of(path, name)
    if chosen is FORMATS["npz"] and path.is_file() and amass.is_amass(path):
        chosen = FORMATS["amass"]
    if chosen.read is None:
        readable = ", ".join(each.suffix for each in _all() if each.read)
        raise ValueError(f"{name}: expected a file to read of {readable}, got {path}")
    return chosen


def _files(path: Path, chosen: Format) -> list[Path]:
    if path.is_file():
        return [path] if chosen.partners is None else chosen.partners(path)
    stem = path.name[: -len(chosen.suffix)]
    number, files = 1, []
    while (file := path.with_name(f"{stem}.person{number}{path.name[len(stem) :]}")).is_file():
        files.append(file)
        number += 1
    if not files or not chosen.per_person:
        raise FileNotFoundError(f"no such file: {path}")
    return files


def _resampled(take: Take, fps: float) -> Take:
    """``take`` at another rate, from its first frame on."""
    count = take.joints.shape[1]
    if (count - 1) * fps / take.fps > MOST_FRAMES:
        raise ValueError(f"fps: expected a rate of at most {MOST_FRAMES} frames in all, got {fps:g} for {take.fps:g}")
    moments = np.arange(int((count - 1) * fps / take.fps + 1e-6) + 1) * (take.fps / fps)
    before = np.minimum(moments.astype(int), max(count - 2, 0))
    after = np.minimum(before + 1, count - 1)
    share = (moments - before).astype(np.float32)[:, None, None]
    joints = (1 - share) * take.joints[:, before] + share * take.joints[:, after]
    return replace(take, joints=joints, fps=fps, motion=None, rotations=None)
