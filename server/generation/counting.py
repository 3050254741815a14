"""Bounds texts whose tokens are only counted or listed, which may be longer than the context."""

from octavo.engine.client import EngineClient
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.health import require_ready

LEAST = 512 * 1024  # bytes of text that can be counted whatever the context is
A_TOKEN = 8  # bytes that a token of the context stands for, generously


def context_of(client: EngineClient) -> int:
    """Returns the tokens of the context, also while the engine restarts.

    Raises ServiceUnavailable before it was ready for the first time.
    """
    return (client.ready or require_ready(client)).max_model_len


def check_countable(text: str, max_model_len: int, field: str) -> None:
    """Raises InvalidRequest for a text that is too long even to be counted."""
    most = max(LEAST, A_TOKEN * max_model_len)
    if len(text) > most or len(text.encode(errors="replace")) > most:
        raise InvalidRequest("{param} should have at most {most:,} bytes of text here; split it.", field, most=most)
