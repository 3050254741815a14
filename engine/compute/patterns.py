r"""Writes regular expressions as llguidance reads them: as those of Rust, nearly those of JavaScript and Python.

[^[\]] a&&b   within a class, a bracket and && -- ~~ mean what they mean elsewhere only after a backslash
\Z \cA        have another name in Rust
(?=...)       cannot be read: it is left out where zod writes it beside a format that keeps to it anyway
"""

import re
from typing import Any

_CONTROL = re.compile(r"\\c([A-Za-z])")
_OPENING = re.compile(r"\[\^?\]?")  # A bracket that closes at once is one of the class.
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")
_SET_OPERATORS = ("&&", "--", "~~")
# Beginnings of the patterns that zod writes beside "email", "duration" and "hostname".
_EMAIL = r"^(?!\.)(?!.*\.\.)"
_DURATION = r"^P(?:(\d+W)|(?!.*W)"
_HOSTNAME = r"^(?=.{1,253}\.?$)"
_MAX_HOSTNAME = 253  # characters
_LOCAL_TIME = r"^(?:[01]\d|2[0-3]):[0-5]\d"


def as_rust(pattern: str) -> str:
    """Returns a regular expression with the same meaning in Rust. Raises ValueError where it breaks off."""
    parts, at, in_class = [], 0, False
    while at < len(pattern):
        part = _next(pattern, at, in_class)
        at += len(part)
        parts.append(_translated(part, in_class))
        in_class = part != "]" if in_class else part.startswith("[")
    return "".join(parts)


def _next(pattern: str, at: int, in_class: bool) -> str:
    """Returns what stands at a place: an escape, an operator in a class, the beginning of a class, or a character."""
    pair = pattern[at : at + 2]
    if pair == "\\":
        raise ValueError("The regular expression ends within an escape; complete it.")
    if pair[0] == "\\":
        control = _CONTROL.match(pattern, at)
        return control[0] if control else pair
    if not in_class:
        opening = _OPENING.match(pattern, at)
        return opening[0] if opening else pair[0]
    posix = _POSIX.match(pattern, at)
    return posix[0] if posix else pair if pair in _SET_OPERATORS else pair[0]


def _translated(part: str, in_class: bool) -> str:
    if len(part) == 3 and part.startswith("\\c"):
        return f"\\x{ord(part[2]) % 32:02X}"
    if part == "\\Z" and not in_class:
        return "\\z"
    if in_class and (part == "[" or part in _SET_OPERATORS):
        return f"{part[:-1]}\\{part[-1]}"
    return part


def with_readable_pattern(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema with a pattern as one that llguidance can read, if it can be told in another way."""
    pattern, format = schema["pattern"], schema.get("format")
    if format == "time" and pattern.startswith(_LOCAL_TIME):  # The format has a time zone, and so none has both.
        schema = {name: value for name, value in schema.items() if name != "format"}
    elif format == "duration" and pattern.startswith(_DURATION):
        return {name: value for name, value in schema.items() if name != "pattern"}
    elif format == "email" and pattern.startswith(_EMAIL):
        pattern = "^" + pattern.removeprefix(_EMAIL)
    elif format == "hostname" and pattern.startswith(_HOSTNAME):
        most = schema.get("maxLength", _MAX_HOSTNAME)
        schema = schema | {"maxLength": min(most, _MAX_HOSTNAME) if isinstance(most, int) else most}
        pattern = "^" + pattern.removeprefix(_HOSTNAME)
    return schema | {"pattern": as_rust(pattern)}
