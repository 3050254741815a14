"""A request's structured output becomes the right grammar, and every wrong request for it is refused."""

import json
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Grammar, Output, Request
from octavo.engine.client import BadGrammar, QueueFull, Unavailable
from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client, each_endpoint
from tests.server.fake import FakeEngineClient, outputs_of
from tests.server.vocab import ids_of

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
OBJECT = Grammar("json", '{"type":"object"}')
BOUND = Grammar("json", json.dumps(SCHEMA))
BARE = Grammar("json", '{"type": "object", "required": ["a"]}')
OLDER = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
NAMES = ("response_format", "structured_outputs", *OLDER, "json_schema", "regex", "grammar", "ebnf")


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
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Grammar("json", json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Grammar("json", json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_object", "schema": {"required": ["a"]}}}, BARE),
        ({"response_format": {"type": "json_object", "schema": {}}}, Grammar("json", '{"type": "object"}')),
        ({"response_format": {"type": "grammar", "grammar": "start: A"}}, Grammar("grammar", "start: A")),
        ({"response_format": {"type": "regex", "pattern": "a+"}}, Grammar("regex", "a+")),
        ({"response_format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}}, BOUND),
        ({"json_schema": SCHEMA}, BOUND),
        ({"json_schema": '{"type": "null"}'}, Grammar("json", '{"type": "null"}')),
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"grammar": "start: A"}, Grammar("grammar", "start: A")),
        ({"ebnf": 'root ::= "a"'}, Grammar("grammar", 'root ::= "a"')),
        ({"structured_outputs": {"regex": "a", "disable_fallback": False, "backend": None}}, Grammar("regex", "a")),
    ],
)
def test_what_a_request_asks_for(endpoint: str, parameters: dict[str, Any], grammar: Grammar) -> None:
    assert grammar_of(endpoint, **parameters) == grammar


@each_endpoint
@pytest.mark.parametrize("name", NAMES)
def test_null_and_empty_are_absent(endpoint: str, name: str) -> None:
    empty = {"response_format": [{"type": "text"}], "structured_outputs": [{}, {"regex": None, "choice": []}]}
    others = {"guided_json": [{}, ""], "guided_choice": [[]], "guided_regex": [""], "guided_grammar": [""]}
    others |= {"json_schema": [{}, ""]} | dict.fromkeys(("regex", "grammar", "ebnf"), [""])
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
        ({"grammar": "start: A", "json_schema": SCHEMA}, "grammar"),
        ({"regex": "a", "ebnf": "root ::= a"}, "ebnf"),
        ({"response_format": {"type": "json_object"}, "json_schema": SCHEMA}, "json_schema"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "regex", "grammar": "a"}}, "response_format.grammar"),
        ({"response_format": {"type": "regex"}}, "response_format.pattern"),
        ({"response_format": {"type": "grammar", "grammar": ""}}, "response_format.grammar"),
        ({"response_format": FORMAT | {"schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, "response_format.value"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "definition": SCHEMA}}},
            "response_format.json_schema.definition",
        ),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"disable_any_whitespace": True}}, "structured_outputs.disable_any_whitespace"),
        ({"grammar": {"type": "json", "value": SCHEMA}}, "grammar"),
        ({"json_schema": 5}, "json_schema"),
        ({"format": "json"}, "format"),
        ({"format": SCHEMA}, "format"),
        ({"output_format": FORMAT}, "output_format"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
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


@pytest.mark.parametrize("key", ["one", "two", None])
def test_callers_are_told_apart_by_an_opaque_name(key: str | None) -> None:
    """The name is that of the key or, where no key is asked for, the client's address."""
    client = Client(config=ServerConfig((MODEL,), api_keys=("one", "two") if key else ()))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": MODEL, "prompt": "hi", "guided_regex": "a"}
    for _ in range(2):
        assert client.post("/v1/completions", body, **headers).status == 200
    (caller,) = set(client.engine.callers)
    assert caller and key != caller
    assert {request.caller for request in client.engine.submitted} == {caller}


def test_other_apis_bind_answers_by_their_own_fields_and_by_these() -> None:
    client = Client()
    for call, field in (
        (client.respond, {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}}),
        (client.respond, {"text": {"format": {"type": "json_object", "schema": SCHEMA}}}),
        (client.respond, {"json_schema": SCHEMA}),
        (client.message, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        (client.message, {"output_format": {"type": "json_schema", "schema": SCHEMA}}),
        (client.message, {"guided_json": SCHEMA}),
    ):
        assert call(**field).status == 200
        assert client.engine.submitted[-1].params.grammar == BOUND


def test_other_apis_refuse_by_name_what_they_do_not_know() -> None:
    client = Client()
    format = {"type": "json_schema", "schema": SCHEMA}
    for call, body, param in (
        (client.respond, {"text": {"format": {"type": "text", "schema": SCHEMA}}}, "text.format.schema"),
        (client.respond, {"text": {"format": {"type": "json_object", "pattern": "a"}}}, "text.format.pattern"),
        (client.respond, {"output_format": format}, "output_format"),
        (client.message, {"output_format": format | {"pattern": "a"}}, "output_format.pattern"),
        (client.message, {"output_config": {"format": format | {"x": 1}}}, "output_config.format.x"),
        (client.message, {"output_config": {"format": format}, "output_format": format}, "output_format"),
        (client.message, {"format": "json"}, "format"),
    ):
        reply = call(**body)
        assert reply.status == 400
        assert f"'{param}'" in reply.error["message"]
    assert client.engine.submitted == []


def cut(request: Request) -> list[Output]:
    """Returns an answer of two tokens, whose grammar could then not be followed any further."""
    whole = outputs_of(request, ids_of("{a"))[:1]
    return [*whole, Output(request.id, finish_reason=FinishReason.LENGTH, error="The grammar is too ambiguous.")]


@each_endpoint
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_its_grammar_cuts_keeps_what_it_has_and_says_so(endpoint: str, stream: bool) -> None:
    reply = Client.replaying(cut).generate(endpoint, guided_regex="a", stream=stream)
    assert reply.status == 200
    last = (reply.events()[-1] if stream else reply.json())["choices"][0]
    assert (last["finish_reason"], last["cut_short"]) == ("length", "The grammar is too ambiguous.")


def test_other_apis_say_that_an_answer_is_incomplete() -> None:
    client = Client.replaying(cut)
    assert client.respond(guided_regex="a").json()["status"] == "incomplete"
    assert client.message(guided_regex="a").json()["stop_reason"] == "max_tokens"
    assert client.message(guided_regex="a", stream=True).named_events()[-1]["type"] == "message_stop"
    assert client.respond(guided_regex="a", stream=True).named_events()[-1]["type"] == "response.incomplete"
