"""Motion of many prompts in one folder, shared by processes and gone on with: what ``intermoe generate --resume`` does.

Every prompt has its number and its files; prompts are sampled together in batches that the list alone decides. So the
files are the same, whoever makes which batch, and a batch is made (again) while any of its files is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from intermoe.cli.common import Process

SETTINGS = "settings.json"


class PromptList:
    """The prompts of one run, and which of their files are there.

    Args:
        folder: of the files.
        prompts: all of them.
        files: suffixes of the files of a prompt.
        batch_size: prompts that are sampled together.
        settings: all else that the files depend on, in plain values.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[str], files: Sequence[str], batch_size: int, settings: Mapping[str, Any]
    ) -> None:
        self.folder, self.prompts, self.files, self.batch_size = folder, prompts, files, batch_size
        content = hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16]
        self.settings = {**settings, "prompts": len(prompts), "content": content, "batch_size": batch_size}

    def stem(self, index: int) -> Path:
        """Of the files of a prompt: its number in the list, from 1, and its words."""
        from intermoe.export.naming import slug

        return self.folder / f"{index + 1:05d}-{slug(self.prompts[index])}"

    def is_made(self, index: int) -> bool:
        """Whether all files of a prompt are there; each is whole or absent."""
        stem = self.stem(index)
        return all(stem.with_name(stem.name + suffix).exists() for suffix in self.files)

    def batches(self) -> list[range]:
        """Prompts that are sampled together."""
        starts = range(0, len(self.prompts), self.batch_size)
        return [range(start, min(start + self.batch_size, len(self.prompts))) for start in starts]

    @contextmanager
    def shared(self, here: Process) -> Iterator[list[range]]:
        """The missing batches that this process makes; the folder is this run's while any process is in the block.

        Raises:
            ValueError: the folder holds motion of other settings; names them. FileExistsError: another run is at it.
        """
        from intermoe.files import locked, unfinished

        with ExitStack() as stack:
            if here.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                refusal = f"--out: {self.folder}: another process is generating here"
                stack.enter_context(locked(self.folder / ".lock", refusal))
                self._belong()
                for left in unfinished(self.folder, "[0-9]*-*"):
                    left.unlink(missing_ok=True)
            here.wait()
            missing = [batch for batch in self.batches() if not all(map(self.is_made, batch))]
            here.wait()  # nobody writes before all have looked
            yield missing[here.rank :: here.ranks]
            here.wait()

    def _belong(self) -> None:
        from intermoe.files import write_json
        from intermoe.reading import read_json

        path = self.folder / SETTINGS
        if not path.exists():
            write_json(path, self.settings)
            return
        before = read_json(path)
        if not isinstance(before, dict):
            raise ValueError(f"{path}: expected the settings of a run, got {type(before).__name__}")
        changed = [
            f"{key} was {before.get(key)!r}, is {value!r}"
            for key, value in self.settings.items()
            if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"--out: expected motion of the same settings in {self.folder}, got others: {', '.join(changed)}"
            )
