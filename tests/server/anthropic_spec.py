"""Every answer under /v1/messages against the types of Anthropic's own package."""

from collections.abc import Mapping
from typing import Any

from anthropic.types.shared import ErrorResponse

from tests.server.strict import check_types


def validate_error(payload: Mapping[str, Any]) -> None:
    check_types(ErrorResponse, payload)
    assert payload.keys() == {"type", "error"} and payload["error"].keys() == {"type", "message"}
