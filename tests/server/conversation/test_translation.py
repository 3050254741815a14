"""Bodies of other shapes: what the chat request complains about is told in the body's own names."""

import pytest

from octavo.server.conversation.translation import declared, naming
from octavo.server.http.errors import ContextLengthExceeded, InvalidRequest
from octavo.server.openai.responses_request import Format, FunctionTool

NAMES = {"messages": "input", "response_format": "text.format", "stop": "stop_sequences"}


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("messages", "input"),
        ("messages.3.content", "input"),
        ("response_format.json_schema.name", "text.format"),
        ("stop", "stop_sequences"),
        ("stop_token_ids", "stop_token_ids"),
        ("temperature", "temperature"),
    ],
)
def test_names(param: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught, naming(NAMES):
        raise InvalidRequest(f"'{param}' is wrong, not 'stopped'.", param)
    assert (caught.value.param, caught.value.message) == (told, f"'{told}' is wrong, not 'stopped'.")


def test_the_error_stays_what_it_is() -> None:
    with pytest.raises(ContextLengthExceeded) as caught, naming(NAMES):
        raise ContextLengthExceeded("too long")
    assert (caught.value.param, caught.value.message) == (None, "too long")


def test_declared_fields_alone() -> None:
    tool = FunctionTool.model_validate({"type": "function", "name": "f", "strict": None, "surprise": 1})
    assert declared(tool) == {"type": "function", "name": "f"}
    form = Format.model_validate({"type": "json_schema", "name": "n", "schema": {"type": "object"}})
    assert declared(form) == {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
