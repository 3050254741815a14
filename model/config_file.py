"""Reads a JSON object of a checkpoint, checks the types of its values and words what is wrong. It imports no torch."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any


class ModelError(Exception):
    """A checkpoint cannot be loaded; the message is one sentence for the user, saying what to do next."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Holds the values of a file such as config.json. Its methods raise ModelError for a value of the wrong type."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ConfigFile":
        """Raises ModelError, also where there is no such file."""
        found = cls.read_if_there(path)
        if found is None:
            raise ModelError(f"{path.parent} has no {path.name}; give the directory of a checkpoint, which has one.")
        return found

    @classmethod
    def read_if_there(cls, path: Path) -> "ConfigFile | None":
        """Returns None where nothing has this name. A link that leads nowhere is no file but a mistake."""
        if not (path.exists() or path.is_symlink()):
            return None
        if not path.is_file():
            raise ModelError(f"{path} is not a file; download the checkpoint again.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read ({_reason(error)}); download the checkpoint again.") from None
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a JSON object; download the checkpoint again.")
        return cls(path, values)

    def error(self, what: str) -> ModelError:
        return ModelError(f"Cannot serve {self.path.parent}: in {self.path.name}, {what}.")

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Returns the int, of at least `least`, of the first name that has a value, or else the default."""
        for name in names:
            value = self.optional_integer(name, least)
            if value is not None:
                return value
        if default is None:
            raise self.error(f"{names[0]} is missing")
        return default

    def optional_integer(self, name: str, least: int = 1) -> int | None:
        """Returns an int of at least `least`; None where there is none."""
        value = self.values.get(name)
        if value is not None and (type(value) is not int or not least <= value < 2**63):
            wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise self.error(f"{name} is {shortened(value)}, not {wanted} of 64 bits")
        return value

    def number(self, name: str) -> float:
        """Returns a number above 0, which must be there."""
        value = self.optional_number(name)
        if value is None:
            raise self.error(f"{name} is missing")
        if value <= 0:
            raise self.error(f"{name} is {value!r}, not a positive number")
        return value

    def optional_number(self, name: str, least: float = 0, most: float = sys.float_info.max) -> float | None:
        """Returns a number within the bounds; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            bounds = f"from {least:g} on" if most == sys.float_info.max else f"from {least:g} to {most:g}"
            raise self.error(f"{name} is {shortened(value)}, not a number {bounds}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{name} is {shortened(value)}, neither true nor false")
        return bool(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """Returns the ints of a list, which may be missing."""
        value = self.values.get(name)
        listed = [] if value is None else value
        if not isinstance(listed, list) or any(type(each) is not int for each in listed):
            raise self.error(f"{name} is {shortened(value)}, not a list of integers")
        return tuple(listed)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Returns the ids of a field that holds one id, a list of them, or nothing."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token) is not int or not 0 <= token < 2**31 for token in ids):
            raise self.error(f"{name} is {shortened(value)}, neither a token id nor a list of them")
        return tuple(ids)


def _reason(error: Exception) -> str:
    """Returns in a few words why a file cannot be read; Python's own words speak of Python."""
    match error:
        case json.JSONDecodeError() if error.doc.startswith("\ufeff"):
            return "it begins with a byte order mark, and JSON has none: save it as UTF-8 without BOM"
        case json.JSONDecodeError() if not error.doc.strip():
            return "it is empty"
        case json.JSONDecodeError() | UnicodeDecodeError():
            return str(error)
        case ValueError():
            return "it has a number of thousands of digits"
        case RecursionError():
            return "it is nested too deeply"
        case OSError():
            return error.strerror or str(error)
    return str(error)
