"""JSON and events survive clients that read them line by line."""

import json
import math

import pytest

from octavo.server.http.wire import encode_json, event, named_event

TEXT = 'a\x85b\u2028c\u2029d\r\n"\\é你🦑\x00'


def test_json_stays_on_one_line_for_everyone() -> None:
    encoded = encode_json({"text": TEXT, TEXT: 1})
    assert len(encoded.decode().splitlines()) == 1
    assert json.loads(encoded) == {"text": TEXT, TEXT: 1}
    assert "你🦑".encode() in encoded  # readable where that is safe


def test_an_event_is_one_line_and_an_empty_one() -> None:
    assert event({"a": 1}) == b'data: {"a":1}\n\n'


def test_a_named_event_says_its_type_first() -> None:
    assert named_event({"type": "a.b", "x": 1}) == b'event: a.b\ndata: {"type":"a.b","x":1}\n\n'


def test_half_a_character_never_breaks_the_encoder() -> None:
    assert json.loads(encode_json({"\ud83d": "a\udc80b", "🦑": "\ud83e\udd91"})) == {"�": "a�b", "🦑": "��"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_have_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_json({"x": value})
