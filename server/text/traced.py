"""A Traced is a str that knows which of its characters a chat template wrote; clients wrote the others.

Markup follows safe HTML through a template in the same way. Whatever a template does that is not followed here gives a
plain str, which counts as the clients': a client's text can never pass for the template's.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, SupportsIndex

_CONVERSION = re.compile(r"%(?:\(([^)]*)\))?([-#0 +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?)[hlL]?([a-zA-Z%])")


class Traced(str):
    """Has the same characters as a plain str, and one byte for each: 1 if the template wrote it, else 0."""

    __slots__ = ("_own",)
    _own: bytes  # The sandbox hides it from templates, as it does every name with such a beginning.

    def __new__(cls, text: str, own: bytes | None = None) -> Self:
        """Without `own` the characters keep their origin; those of a plain str are the clients'."""
        traced = str.__new__(cls, text)
        traced._own = origins(text) if own is None else own
        return traced

    def __reduce__(self) -> tuple[type[Self], tuple[str, bytes]]:
        return type(self), (plain(self), self._own)

    def __str__(self) -> str:
        return self

    def __getitem__(self, index: SupportsIndex | slice) -> "Traced":
        own = self._own[index]
        return Traced(super().__getitem__(index), own if isinstance(own, bytes) else bytes((own,)))

    def __add__(self, other: str) -> "Traced":
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(self, other), self._own + origins(other))

    def __radd__(self, other: str) -> "Traced":
        return Traced(str.__add__(other, self), origins(other) + self._own)

    def __mul__(self, count: SupportsIndex) -> "Traced":
        return Traced(super().__mul__(count), self._own * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Traced":
        text = super().__mod__(values)  # raises what it raises
        joined = EMPTY.join(_converted(self, values))
        return joined if joined == text else Traced(text)

    def join(self, parts: Iterable[str], /) -> "Traced":
        parts = list(parts)
        return Traced(super().join(parts), self._own.join(map(origins, parts)))

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> "Traced":
        if not old:
            return Traced(super().replace(old, new, count))
        return Traced(new).join(self.split(old, count))

    def strip(self, chars: str | None = None, /) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return list(self._found(super().split(sep, maxsplit), len(sep or "")))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return list(self._found(super().rsplit(sep, maxsplit), len(sep or "")))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines, whole = super().splitlines(keepends), super().splitlines(True)
        return [there[: len(line)] for line, there in zip(lines, self._found(whole, 0), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._found(super().partition(sep), 0)
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._found(super().rpartition(sep), 0)
        return before, found, after

    def upper(self) -> "Traced":
        return self._of_same_length(super().upper())

    def lower(self) -> "Traced":
        return self._of_same_length(super().lower())

    def title(self) -> "Traced":
        return self._of_same_length(super().title())

    def capitalize(self) -> "Traced":
        return self._of_same_length(super().capitalize())

    def _of_same_length(self, text: str) -> "Traced":
        """Returns text in other letters. Some letters become two, and then the text counts as the clients'."""
        return Traced(text, self._own if len(text) == len(self) else None)

    def _found(self, pieces: Sequence[str], gap: int) -> Iterator["Traced"]:
        """Yields pieces of this text, which come in order and lie at least `gap` characters apart."""
        position = 0
        for piece in pieces:
            start = self.find(piece, position)
            yield self[start : start + len(piece)]
            position = start + len(piece) + gap


def of_template(text: str) -> Traced:
    """Returns text that the template wrote."""
    return Traced(text, b"\1" * len(text))


def origins(text: str) -> bytes:
    """Returns 1 for each character that the template wrote, and 0 for each other one."""
    return text._own if isinstance(text, Traced) else bytes(len(text))


def plain(text: str) -> str:
    """Returns the same characters, without their origins."""
    return str.__str__(text)


EMPTY = Traced("")


def formatted(text: str, field: Callable[[str, str | None, str], str], parts: Iterable[Any]) -> Traced:
    """Joins the `parts` into which string.Formatter parses `text`; `field` returns what one of the fields becomes."""
    is_own = 0 not in origins(text)
    numbers = iter(range(len(text)))
    pieces: list[str] = []
    for literal, name, spec, conversion in parts:
        pieces.append(of_template(literal) if is_own else literal)
        if name is not None:
            number = str(next(numbers)) if name[:1] in ("", ".", "[") else ""
            pieces.append(field(number + name, conversion, spec))
    return EMPTY.join(pieces)


def _converted(text: Traced, values: Any) -> Iterator[str]:
    """Yields the pieces of `text % values`, without those whose width is one of the values."""
    position, rest = 0, iter(values if isinstance(values, tuple) else (values,))
    for match in _CONVERSION.finditer(text):
        yield text[position : match.start()]
        position = match.end()
        name, form, kind = match.groups()
        if kind == "%":
            yield text[position - 1 : position]
        elif "*" not in form:
            value = next(rest) if name is None else values[name]
            yield str(value) if (form, kind) == ("", "s") else f"%{form}{kind}" % (value,)
    yield text[position:]
