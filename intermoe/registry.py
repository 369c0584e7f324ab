"""Names and where the things they name are defined: what has several kinds is listed in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to things that are imported when they are first asked for.

    Args:
        argument: what an error calls a name, such as ``"representation"``.
        places: name to ``"module:attribute"``.
    """

    def __init__(self, argument: str, places: Mapping[str, str]) -> None:
        self.argument = argument
        self._places = dict(places)
        self._found: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """The thing called ``name``. Raises ``ValueError`` that lists the names there are."""
        if name not in self:
            raise ValueError(f"{self.argument}: expected one of {', '.join(self)}, got {name!r}")
        if name not in self._found:
            module, attribute = self._places[name].split(":")
            self._found[name] = getattr(import_module(module), attribute)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: str, place: str) -> None:
        """List one more. Raises ``ValueError`` if the name is taken."""
        if name in self:
            raise ValueError(f"{self.argument}: expected a free name, got {name!r}, taken by {self._places[name]}")
        self._places[name] = place


def exports(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` for public names that are imported when they are first used.

    Args:
        package: its ``__name__``.
        places: name to the module of the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return find
