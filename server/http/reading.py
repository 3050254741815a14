"""Reads JSON from outside: bodies, and the JSON text that clients put into strings and that models write.

This is the one way in. Whatever passes has no lone surrogate, which no encoder takes, no number beyond the range of a
double, which JSON cannot write again, and no nesting that a recursion could not follow.
"""

import json
import re
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from octavo.server.http.errors import InvalidRequest
from octavo.server.http.wire import REPLACEMENT, clean

T = TypeVar("T")

UTF8_NAMES = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_UTF8_MARK = b"\xef\xbb\xbf"

_SURROGATE = re.compile(rb"\\u[dD](?:([89abAB])|[c-fC-F])[0-9a-fA-F]{2}")  # the group marks a leading one
_REPLACED = json.dumps(REPLACEMENT)[1:-1].encode()

MOST_BITS = 1024  # of an integer within the range of a double
_LONG = b"0" * 200  # A number that is too large has so many digits, or an exponent of three.
_EXPONENTS = (b"0e000", b"0ee000")
_SHAPES = bytes(0x30 if byte in b"0123456789" else 0x65 if byte in b"eE+" else 0x20 for byte in range(256))


def parsed_json(parse: Callable[[bytes], T], data: bytes) -> T:
    """Returns what `parse` makes of JSON text, with U+FFFD for lone surrogates.

    `parse` raises a ValueError for what is not JSON, and so does this function for numbers beyond the range of a
    double. It is plain computing, a few milliseconds for each MB beside `parse`, and may run in any thread.
    """
    try:
        value = parse(data)
    except ValueError:
        places = _lone_surrogates(data)
        if not places:
            raise
        value = parse(_replaced(data, places))
    if _may_exceed(data) and not all(map(_is_double, _leaves(value))):
        raise ValueError("a number is beyond the range of a double")
    return value


def read_json(text: str, partial: bool = False) -> Any:
    """Returns the value of a JSON text that came in a string. Raises ValueError as `parsed_json` does.

    With `partial` the end may be missing; the value then has what is whole.
    """
    return parsed_json(lambda data: from_json(data, allow_inf_nan=False, allow_partial=partial), clean(text).encode())


def check_content_type(header: str) -> None:
    """Raises InvalidRequest unless a body of this Content-Type, which may be missing, is JSON in UTF-8."""
    kind, *parameters = [part.strip().lower() for part in header.split(";")]
    if kind not in ("", "application/json"):
        raise InvalidRequest(f"The body must be JSON, sent as Content-Type: application/json, not '{kind[:100]}'.")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and (charset := value.strip().strip('"')) not in UTF8_NAMES:
            raise InvalidRequest(f"The body must be UTF-8, not the charset '{charset[:100]}' of its Content-Type.")


def check_utf8(body: bytes) -> None:
    """Raises InvalidRequest for a body that is not UTF-8, or that begins with a mark of the order of its bytes."""
    encoding = json.detect_encoding(body[:4])
    if body.startswith(_UTF8_MARK):
        raise InvalidRequest("The body begins with a byte order mark (BOM); send it as UTF-8 without one.")
    if not encoding.startswith("utf-8"):
        raise InvalidRequest(f"The body must be UTF-8, and this is {encoding[:6].upper()}; encode it anew.")


def _lone_surrogates(data: bytes) -> list[int]:
    """Returns where escapes of surrogates begin that are not half of a pair."""
    lone: list[int] = []
    leading, end = -1, 0  # the place of a leading one that may be half of a pair; the end of what was looked at
    for match in _SURROGATE.finditer(data):
        place, before = match.start(), data[end : match.start()]
        if (len(before) - len(before.rstrip(b"\\"))) % 2:
            end = place + 1  # The backslash is itself escaped, and what follows it is text.
            continue
        completes = leading >= 0 and place == end and match[1] is None
        if leading >= 0 and not completes:
            lone.append(leading)
        if match[1] is None and not completes:
            lone.append(place)
        leading, end = -1 if match[1] is None else place, match.end()
    return lone if leading < 0 else [*lone, leading]


def _replaced(data: bytes, places: Iterable[int]) -> bytes:
    """Returns the data with U+FFFD in place of the escapes at these places; both are written in six bytes."""
    mended = bytearray(data)
    for place in places:
        mended[place : place + len(_REPLACED)] = _REPLACED
    return bytes(mended)


def _may_exceed(data: bytes) -> bool:
    """Returns False only if no number is beyond the range of a double. It is cheap, and looks into strings, too."""
    if b"NaN" in data or b"Infinity" in data:
        return True
    shapes = data.translate(_SHAPES)
    return any(exponent in shapes for exponent in _EXPONENTS) or _LONG in shapes


def _is_double(value: object) -> bool:
    """Returns False for a number that no finite double is near."""
    return (
        isfinite(value) if isinstance(value, float) else not isinstance(value, int) or value.bit_length() <= MOST_BITS
    )


def _leaves(value: object) -> Iterable[object]:
    """Yields the values within objects and arrays at any depth."""
    open_values = [value]
    while open_values:
        match open_values.pop():
            case BaseModel() as model:
                open_values += (*model.__dict__.values(), *(model.model_extra or {}).values())
            case dict() as members:
                open_values += members.values()
            case list() as items:
                open_values += items
            case leaf:
                yield leaf
