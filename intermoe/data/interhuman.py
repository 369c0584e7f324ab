"""Reader of two-person motion in InterHuman's folder layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.motion import Array, mirror_raw, process_pair, row_major_rot6d

FILE_WIDTH = 492
_USED_COLUMNS = np.r_[0:66, 186:312]
# Source columns stay in memory up to this size; sets beyond it are read again from disk.
_MEMORY_BYTES = 4 * 2**30


class MotionItem(TypedDict):
    """One item: ``motion`` is float32 (T, 2, 262), not normalised."""

    name: str
    motion: torch.Tensor
    caption: str


@dataclass
class DatasetReport:
    """Items of a split that cannot be used: ``problems`` maps a kind of problem to the names (with details)."""

    total: int = 0
    ignored: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of items left out."""
        return sum(map(len, self.problems.values()))

    def summary(self, *, names: int = 5) -> str:
        """One line a kind: the count and the first ``names`` names."""
        lines = [f"{self.count} of {self.total} items cannot be used"]
        for kind, items in sorted(self.problems.items()):
            more = f", and {len(items) - names} more" if len(items) > names else ""
            lines.append(f"  {kind}: {len(items)} ({', '.join(items[:names])}{more})")
        return "\n".join(lines)


class ItemError(ValueError):
    """Why an item cannot be used; ``kind`` groups such items in the report."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class InterHumanDataset(Dataset[MotionItem]):
    """Two-person motion with captions, one item a sequence, converted to the 262 representation.

    Expects ``motions_processed/person{1,2}/<name>.npy`` (T, 492), ``annots/<name>.txt`` (a caption a line),
    ``split/<split>.txt`` and, optionally, ``ignore_list.txt`` (names, a line each).
    Rotations stored column after column are brought to InterHuman's row-major rot6D (see ``row_major_rot6d``).

    A window is cut from the source before conversion, so that its first frame is the canonical one. In training
    (``training=True``) its place and the caption are drawn at random; in evaluation they are the first ones. A sequence
    longer than ``max_frames`` becomes such a window of ``max_frames``. What is drawn depends on (seed, epoch, index)
    alone, not on workers, order or earlier items.

    Args:
        root: folder of the data.
        split: name of a file in ``split/``, without ``.txt``.
        window: exact number of frames of every item; shorter sequences are left out. None: whole sequences.
        min_frames: shortest sequence to use, in converted frames (one fewer than in the file).
        max_frames: longest item, in converted frames.
        mirror: mirror an item, words of its caption included, with probability 1/2.
        swap_persons: exchange the persons, words of the caption included, with probability 1/2.
        seed: of everything random.
        training: random windows and captions; by default for the split named "train".
        strict: raise where an item cannot be used, instead of leaving it out with a warning.

    Raises:
        FileNotFoundError: no such split.
        ValueError: an argument out of range, an unusable item with ``strict``, or no usable item at all.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        window: int | None = None,
        min_frames: int = 16,
        max_frames: int = 300,
        mirror: bool = False,
        swap_persons: bool = False,
        seed: int = 0,
        training: bool | None = None,
        strict: bool = False,
    ) -> None:
        if not 1 <= min_frames <= max_frames:
            raise ValueError(f"min_frames: must be in [1, max_frames={max_frames}], got {min_frames}")
        if window is not None and not 1 <= window <= max_frames:
            raise ValueError(f"window: must be in [1, max_frames={max_frames}], got {window}")
        if seed < 0:
            raise ValueError(f"seed: must be >= 0, got {seed}")
        self.root = Path(root)
        self.split = split
        self.window = window
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.mirror = mirror
        self.swap_persons = swap_persons
        self.seed = seed
        self.training = split == "train" if training is None else training
        # Shared memory: workers that outlive an epoch must see the next one too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._captions: list[tuple[str, ...]] = []
        self._frames: list[int] = []
        self._raw: list[tuple[Array, Array] | None] = []
        self.report = self._scan(strict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> MotionItem:
        return self.draw(index, int(self._epoch))

    def draw(self, index: int, epoch: int) -> MotionItem:
        """Item ``index`` as it is drawn in ``epoch``, whatever ``set_epoch`` said last."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: must be in [0, {len(self)}), got {index}")
        rng = np.random.default_rng((self.seed, epoch, index))
        draw_caption, draw_start, draw_mirror, draw_swap = rng.random(4)
        raw1, raw2 = self._raw_pair(index)
        frames = self.num_frames(index)
        start = int(draw_start * (len(raw1) - frames)) if self.training else 0
        raw1, raw2 = (raw[start : start + frames + 1] for raw in (raw1, raw2))
        captions = self._captions[index]
        caption = captions[int(draw_caption * len(captions))] if self.training else captions[0]
        if self.mirror and draw_mirror < 0.5:
            raw1, raw2, caption = mirror_raw(raw1), mirror_raw(raw2), mirror_caption(caption)
        if self.swap_persons and draw_swap < 0.5:
            raw1, raw2, caption = raw2, raw1, swap_caption(caption)
        motion = torch.from_numpy(np.stack(process_pair(raw1, raw2), axis=1))
        return {"name": self.names[index], "motion": motion, "caption": caption}

    def num_frames(self, index: int) -> int:
        """Length of item ``index`` in converted frames, the same in every epoch."""
        return min(self.max_frames, self._frames[index]) if self.window is None else self.window

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an item as written, before any mirroring or exchange."""
        return self._captions[index]

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn next; running workers see it from their next item on."""
        if epoch < 0:
            raise ValueError(f"epoch: must be >= 0, got {epoch}")
        self._epoch.fill_(epoch)

    def _scan(self, strict: bool) -> DatasetReport:
        """Read and check every item once: what is broken is known before training starts, not in the middle of it."""
        names = _read_lines(self.root / "split" / f"{self.split}.txt")
        ignore_list = self.root / "ignore_list.txt"
        ignored = set(_read_lines(ignore_list)) if ignore_list.exists() else set()
        wanted = [name for name in names if name not in ignored]
        report = DatasetReport(total=len(wanted), ignored=len(names) - len(wanted))
        free = _MEMORY_BYTES
        for name in wanted:
            try:
                captions = self._read_captions(name)
                pair = self._read_pair(name)
            except ItemError as error:
                report.problems.setdefault(error.kind, []).append(error.detail)
                continue
            self.names.append(name)
            self._captions.append(captions)
            self._frames.append(len(pair[0]) - 1)
            free -= 2 * pair[0].nbytes
            self._raw.append(pair if free >= 0 else None)
        if report.count and (strict or not self.names):
            raise ValueError(f"{self.root}: {report.summary()}")
        if not self.names:
            raise ValueError(f"{self.root}: split {self.split!r} names no item")
        if report.count:
            warnings.warn(f"{self.root}: {report.summary()}", stacklevel=3)
        return report

    def _raw_pair(self, index: int) -> tuple[Array, Array]:
        return self._raw[index] or self._read_pair(self.names[index])

    def _read_captions(self, name: str) -> tuple[str, ...]:
        try:
            captions = tuple(_read_lines(self.root / "annots" / f"{name}.txt"))
        except FileNotFoundError:
            raise ItemError("no caption", f"{name}: no file in annots") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ItemError("unreadable caption file", f"{name}: {error}") from error
        if not captions:
            raise ItemError("no caption", f"{name}: empty file")
        return captions

    def _read_pair(self, name: str) -> tuple[Array, Array]:
        paths = [self.root / "motions_processed" / person / f"{name}.npy" for person in ("person1", "person2")]
        missing = [path.parent.name for path in paths if not path.exists()]
        if len(missing) == 2:
            raise ItemError("no motion file", name)
        if missing:
            raise ItemError("missing partner", f"{name}: no file for {missing[0]}")
        raw1, raw2 = (_read_raw(path, f"{name} {path.parent.name}") for path in paths)
        if len(raw1) != len(raw2):
            raise ItemError("persons of different length", f"{name}: {len(raw1)} and {len(raw2)} frames")
        needed = 1 + (self.min_frames if self.window is None else max(self.window, self.min_frames))
        if len(raw1) < needed:
            raise ItemError(f"shorter than {needed} frames", f"{name}: {len(raw1)}")
        return raw1, raw2


def _read_raw(path: Path, label: str) -> Array:
    try:
        values: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ItemError("unreadable file", f"{label}: {error}") from error
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        raise ItemError("unreadable file", f"{label}: expected an array of floating-point numbers")
    if values.ndim != 2 or values.shape[1] != FILE_WIDTH:
        raise ItemError("wrong shape", f"{label}: expected (T, {FILE_WIDTH}), got {values.shape}")
    raw = np.asarray(values[:, _USED_COLUMNS], dtype=np.float32)
    if not np.isfinite(raw).all():
        raise ItemError("not finite", f"{label}: frame {int(np.argmin(np.isfinite(raw).all(1)))}")
    raw[:, 66:] = row_major_rot6d(raw[:, 66:].reshape(len(raw), -1, 6)).reshape(len(raw), -1)
    return raw


def _read_lines(path: Path) -> list[str]:
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (expected InterHuman's layout)") from None
    return [line.strip() for line in lines if line.strip()]
