"""Encodes objects as JSON, which clients may split into lines, and as server-sent events.

This is the one way out: whatever the text, it can be encoded.
"""

import json
import re
from collections.abc import Mapping

# JSON strings may contain these, but `str.splitlines`, and clients built on it, break lines at them.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_SURROGATES = re.compile("[\ud800-\udfff]")

REPLACEMENT = "\ufffd"  # stands for what is no character
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def clean(text: str) -> str:
    """Returns the text with U+FFFD for lone surrogates: no encoder takes them, and the tokenizer does not either."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub(REPLACEMENT, text)
    return text


def encode_json(payload: Mapping[str, object]) -> bytes:
    """Encodes an object. Raises ValueError for a NaN or an infinity, which JSON does not have."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_LINE_BREAKS)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return clean(text).encode()


def event(payload: Mapping[str, object]) -> bytes:
    """Returns one server-sent event."""
    return b"data: " + encode_json(payload) + b"\n\n"


def named_event(payload: Mapping[str, object]) -> bytes:
    """Returns one server-sent event that gives its type twice, as its name and in its data."""
    return f"event: {payload['type']}\n".encode() + event(payload)
