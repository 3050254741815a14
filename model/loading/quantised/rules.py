"""Defines what a format's config says of each module."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from octavo.model.loading.quantised.exclusions import Exclusions, Match
from octavo.model.loading.quantised.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Declared:
    """A Declared is what a config says of one module."""

    scheme: Scheme | None  # None: the module is stored as it is
    certain: bool = False  # the module is named; else the files decide
    reason: str = ""  # the beginning of a sentence: "ignore says that"


class Rules(ABC):
    """Rules are what a quantised checkpoint's config says."""

    marks: ClassVar[tuple[str, ...]]  # endings of the names that only a quantised module has
    notes: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Says whether there are kinds that hold the format as it is."""
        return True

    @property
    def expressions(self) -> tuple[str, ...]:
        """Returns the regular expressions that `declared` compares with modules."""
        return ()

    @abstractmethod
    def declared(self, module: str, names: Collection[str]) -> Declared:
        """Returns what the config says of a module; `names` are the tensors that the files hold."""


def declared_unless(excluded: Exclusions, module: str, scheme: Scheme) -> Declared:
    """Returns the scheme for all modules that a list does not exclude with certainty."""
    if excluded.of(module) is Match.YES:
        return Declared(None, certain=True, reason=f"{excluded.field} says that")
    return Declared(scheme)
