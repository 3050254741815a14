"""How objects become bytes: JSON that line-splitting clients survive, and server-sent events."""

import json
from collections.abc import Mapping

# Legal inside JSON strings, but `str.splitlines` breaks lines at them, and so do clients built on it.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def encode_json(payload: Mapping[str, object]) -> bytes:
    """Raises ValueError for a NaN or an infinity, which JSON does not have."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_BREAKS).encode()


def event(payload: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(payload) + b"\n\n"


def named_event(payload: Mapping[str, object]) -> bytes:
    """One server-sent event that says its type twice: as its name, and within."""
    return f"event: {payload['type']}\n".encode() + event(payload)
