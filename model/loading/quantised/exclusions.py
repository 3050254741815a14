"""Matches the names of modules with the lists in which formats name what they left as it was.

The formats' own readers match in different ways: whole names, endings, any part of a name, globs, regular expressions.
What all of them take for a match is certain. What some of them do, such as "gate" in "gate_proj", is left to the files:
their tensors show what the author did.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatchcase
from reprlib import repr as shortened

from octavo.model.config_file import ConfigFile

REGEX = "re:"


class Match(Enum):
    """A Match says whether a list names a module."""

    NO = auto()
    PERHAPS = auto()  # some readers say so, others do not
    YES = auto()


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Exclusions are the modules that a checkpoint left as they were, as one field of its config lists them."""

    field: str
    entries: tuple[str, ...]

    @classmethod
    def read(cls, fields: ConfigFile, *names: str) -> "Exclusions":
        """Reads the first of the fields that has a value. Raises ModelError for anything but a list of patterns."""
        field = next((name for name in names if fields.values.get(name) is not None), names[0])
        return cls(field, patterns(fields, field))

    @property
    def expressions(self) -> tuple[str, ...]:
        """Returns the regular expressions among the entries."""
        return expressions_in(self.entries)

    def of(self, module: str) -> Match:
        """Returns the surest match of the entries."""
        found = {match(entry, module) for entry in self.entries}
        return Match.YES if Match.YES in found else Match.PERHAPS if Match.PERHAPS in found else Match.NO


def patterns(fields: ConfigFile, field: str) -> tuple[str, ...]:
    """Returns a list of names, globs and regular expressions; it may be missing. Raises ModelError."""
    entries = fields.values.get(field)
    if entries is None:
        return ()
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise fields.error(f"{field} is {shortened(entries)}, not a list of names")
    for entry in entries:
        if entry.startswith(REGEX):
            check_regex(fields, field, entry.removeprefix(REGEX))
    return tuple(entry.removesuffix(".weight") for entry in entries)


def expressions_in(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the regular expressions among entries."""
    return tuple(entry.removeprefix(REGEX) for entry in entries if entry.startswith(REGEX))


def check_regex(fields: ConfigFile, field: str, pattern: str) -> None:
    """Raises ModelError for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise fields.error(f"{field} has {shortened(pattern)}, which is not a regular expression") from None


def match(entry: str, module: str) -> Match:
    """Compares one entry with the name of a module.

    compressed-tensors takes "re:" from the start of a name, and the end may be left over. transformers takes an entry
    as a name, as an ending and as a regular expression up to a dot. AutoAWQ takes any part of a name.
    """
    if entry.startswith(REGEX):
        pattern = entry.removeprefix(REGEX)
        if re.fullmatch(pattern, module):
            return Match.YES
        return Match.PERHAPS if re.match(pattern, module) else Match.NO
    if entry == module or module.endswith(f".{entry}") or module.startswith(f"{entry}."):
        return Match.YES
    if "*" in entry and _matches_glob(entry, module):
        return Match.YES
    return Match.PERHAPS if entry in module else Match.NO


def _matches_glob(entry: str, module: str) -> bool:
    """Takes a star as any text; transformers stops at any dot then, so that children of a module match, too."""
    return fnmatchcase(module, entry) or fnmatchcase(module, f"{entry}.*")
