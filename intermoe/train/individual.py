"""Captions with a description of each person: InterHuman's individual ones, beside that of the interaction."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from intermoe.data.dataset import MotionChoice, MotionDataset
from intermoe.data.items import ItemError, read_captions
from intermoe.systems.in2in.texts import SEPARATOR, join_texts

FOLDER = "annots_individual"


class IndividualTexts(MotionDataset):
    """``MotionDataset`` whose captions are ``"interaction | person 1 | person 2"``.

    A person's descriptions are the lines of ``root/annots_individual/person<p>/<name>.txt``; caption i goes with line
    i, from the first on again where there are fewer. Items without them are left out. Where the folder is absent,
    captions stay as they are: one may hold all texts itself, and else stands for everyone.

    Raises:
        ValueError: no item has descriptions of all persons.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.individual: dict[str, list[tuple[str, ...]]] = {}
        if not (self.root / FOLDER).is_dir():
            return
        for name in self.names:
            try:
                self.individual[name] = [
                    tuple(read_captions(self.root / FOLDER / f"person{person}", name))
                    for person in range(1, self.data_set.representation.persons + 1)
                ]
            except ItemError as error:
                self.report.add(error)
        kept = [place for place, name in enumerate(self.names) if name in self.individual]
        if not kept:
            raise ValueError(
                f"{self.root}: split {self.split!r}: expected items with descriptions in {FOLDER}, got none"
            )
        self._indices, self.names = [self._indices[place] for place in kept], [self.names[place] for place in kept]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an item, each with a description of every person where there are some."""
        together, apart = super().captions(index), self.individual.get(self.names[index])
        if apart is None:
            return together
        return tuple(
            join_texts(caption, [lines[turn % len(lines)] for lines in apart]) for turn, caption in enumerate(together)
        )

    def choose(self, index: int, epoch: int) -> tuple[MotionChoice, str]:
        """See ``MotionDataset.choose``; persons who change places take their descriptions along."""
        choice, caption = super().choose(index, epoch)
        parts = [part.strip() for part in caption.split(SEPARATOR)]
        if choice.swapped and len(parts) > 1:
            caption = join_texts(parts[0], parts[:0:-1])
        return choice, caption

    def digest(self) -> str:
        """See ``MotionDataset.digest``; of the descriptions too."""
        if not self.individual:
            return super().digest()
        content = json.dumps([super().digest(), self.individual], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
