"""What a format is: how a motion becomes files of its kind, and files a motion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intermoe.export.take import Take


@dataclass(frozen=True)
class Format:
    """A kind of file. ``write`` and ``read`` get all paths of a motion: one, or one per person.

    ``needs`` are modules beyond numpy that writing imports, ``extra`` is the extra of the package that has them.
    ``refuse`` raises ``ValueError`` for a motion that the format cannot hold. ``partners`` tells the files of a motion
    by one of them.
    """

    suffix: str
    write: Callable[[list[Path], Take], None] | None = None
    read: Callable[[list[Path]], Take] | None = None
    per_person: bool = False
    needs: tuple[str, ...] = ()
    extra: str = "viz"
    refuse: Callable[[Take], None] | None = None
    partners: Callable[[Path], list[Path]] | None = None

    def check(self, take: Take | None = None) -> None:
        """Raise for what writing would refuse, before it begins.

        Raises:
            ModuleNotFoundError: a module is missing; says how to install it. ValueError: ``take`` does not fit.
        """
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                name = self.suffix.removeprefix(".")
                raise ModuleNotFoundError(f"{name}: needs {module}: pip install 'intermoe[{self.extra}]'")
        if take is not None and self.refuse is not None:
            self.refuse(take)
