"""Every response against OpenAI's own types and, where OPENAI_SPEC names the file, OpenAI's published specification."""

from collections.abc import Sequence


def validate(path: str, method: str, status: int, body: bytes) -> None: ...
def validate_stream(path: str, lines: Sequence[str]) -> None: ...
