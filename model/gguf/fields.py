"""Takes values out of a file's metadata, and words what is wrong with one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ModelError

ADVICE = "use another file of the model, or convert it again"


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields are the metadata of a model. All methods raise ModelError for a value that is none of its kind."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""  # of the names that the methods are given

    def get(self, name: str) -> Any:
        """Returns whatever is there; None where nothing is."""
        return self.values.get(self.prefix + name)

    def error(self, what: str, advice: str = ADVICE) -> ModelError:
        return ModelError(f"Cannot use {self.path}: {what}; {advice}.")

    def integer(self, name: str, default: int | None = None) -> int:
        """Returns a whole number above 0; one for each layer may be there, if all are the same."""
        value = self._found(name, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, list):
            raise self.error(f"{self.prefix}{name} differs from layer to layer")
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.error(f"{self.prefix}{name} is {shortened(value)}, not a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a number above 0, rounded to the seven digits that float32 has, so that 1e-5 is 1e-5 again."""
        value = self._found(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(f"{self.prefix}{name} is {shortened(value)}, not a number above 0")
        return float(f"{value:.7g}")

    def flag(self, name: str, default: bool) -> bool:
        value = self._found(name, default)
        if not isinstance(value, bool):
            raise self.error(f"{self.prefix}{name} is {shortened(value)}, neither true nor false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._found(name, default)
        if not isinstance(value, str):
            raise self.error(f"{self.prefix}{name} is {shortened(value)}, not a text")
        return value

    def items(self, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        """Returns a list whose items are all of one kind."""
        value = self._found(name, default)
        if not isinstance(value, list) or not all(type(each) is kind for each in value):
            raise self.error(f"{self.prefix}{name} is {shortened(value)}, not a list of {kind.__name__} values")
        return value

    def _found(self, name: str, default: Any) -> Any:
        value = self.values.get(self.prefix + name, default)
        if value is None:
            raise self.error(f"{self.prefix}{name} is missing")
        return value
