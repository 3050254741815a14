"""Encodes objects as JSON, which clients may split into lines, and as server-sent events."""

import json
from collections.abc import Mapping

# JSON strings may contain these, but `str.splitlines`, and clients built on it, break lines at them.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def encode_json(payload: Mapping[str, object]) -> bytes:
    """Encodes an object. Raises ValueError for a NaN or an infinity, which JSON does not have."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_BREAKS).encode()


def event(payload: Mapping[str, object]) -> bytes:
    """Returns one server-sent event."""
    return b"data: " + encode_json(payload) + b"\n\n"


def named_event(payload: Mapping[str, object]) -> bytes:
    """Returns one server-sent event that gives its type twice, as its name and in its data."""
    return f"event: {payload['type']}\n".encode() + event(payload)
