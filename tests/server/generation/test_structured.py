"""A request's structured output becomes the right grammar, and every wrong request for it is refused."""

import json
from typing import Any

import pytest

from octavo.engine.api import Grammar
from octavo.engine.client import BadGrammar, QueueFull, Unavailable
from tests.server.client import Client, each_endpoint
from tests.server.fake import FakeEngineClient

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
OBJECT = Grammar("json", '{"type":"object"}')
NAMES = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def grammar_of(endpoint: str, **parameters: Any) -> Grammar | None:
    client = Client()
    assert client.generate(endpoint, n=2, **parameters).status == 200
    grammars = {request.params.grammar for request in client.engine.submitted}
    assert len(grammars) == 1 and grammars - {None} == set(client.engine.checked)
    return grammars.pop()


@each_endpoint
@pytest.mark.parametrize(
    ("parameters", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, OBJECT),
        ({"response_format": FORMAT}, Grammar("json", json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "it", "strict": True}}}, OBJECT),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, Grammar("json", '{"type": "null"}')),
        ({"structured_outputs": {"json_object": True}}, OBJECT),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["é", "b"]}}, Grammar("choice", '["\\u00e9", "b"]')),
        ({"structured_outputs": {"grammar": "start: A"}}, Grammar("grammar", "start: A")),
        ({"guided_json": SCHEMA}, Grammar("json", json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, Grammar("choice", '["a", "b"]')),
        ({"guided_grammar": "start: A"}, Grammar("grammar", "start: A")),
    ],
)
def test_what_a_request_asks_for(endpoint: str, parameters: dict[str, Any], grammar: Grammar) -> None:
    assert grammar_of(endpoint, **parameters) == grammar


@each_endpoint
@pytest.mark.parametrize("name", NAMES)
def test_null_and_empty_are_absent(endpoint: str, name: str) -> None:
    empty = {"response_format": [{"type": "text"}], "structured_outputs": [{}, {"regex": None, "choice": []}]}
    others = {"guided_json": [{}, ""], "guided_choice": [[]], "guided_regex": [""], "guided_grammar": [""]}
    for value in (None, *(empty | others)[name]):
        assert grammar_of(endpoint, **{name: value}) is None


def test_strict_or_not_is_the_same() -> None:
    for strict in (True, False, None):
        format = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": strict}}
        assert grammar_of("chat", response_format=format) == Grammar("json", json.dumps(SCHEMA))


@each_endpoint
@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice.1"),
        ({"structured_outputs": {"grammar": {}}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_grammar": 5}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": FORMAT, "guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_what_is_asked_wrongly_is_named(endpoint: str, parameters: dict[str, Any], param: str) -> None:
    client = Client()
    reply = client.generate(endpoint, **parameters)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert param in reply.error["message"]
    assert client.engine.submitted == client.engine.checked == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("complaint", "status"),
    [(BadGrammar('"not" is not supported.'), 400), (QueueFull("."), 429), (Unavailable("."), 503)],
)
def test_a_grammar_that_is_refused_is_an_error_before_anything_is_queued(
    complaint: Exception, status: int, stream: bool
) -> None:
    client = Client(FakeEngineClient(complaint=complaint))
    reply = client.chat(response_format=FORMAT, stream=stream)
    assert (reply.status, client.engine.submitted) == (status, [])
    if status == 400:
        assert reply.error["param"] == "response_format.json_schema.schema"
        assert reply.error["message"] == "'response_format.json_schema.schema': \"not\" is not supported."
