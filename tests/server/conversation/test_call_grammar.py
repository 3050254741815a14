"""Tests that whatever the grammar of demanded calls lets through is parsed as calls whose arguments validate."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, grammar_from

from octavo.engine.api import Grammar
from octavo.engine.client import BadGrammar
from octavo.server.conversation.calls import CallParser, format_of
from octavo.server.conversation.parts import ParsedDelta
from octavo.server.conversation.tagged_grammar import tagged_call
from octavo.server.conversation.tools import Tool
from octavo.server.text.call_formats import GRANITE, JSON, LLAMA, MISTRAL, MISTRAL_NAMED, TAGGED, CallFormat
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client
from tests.server.conversation.test_tools import CALLS, TOOLS, granite, mistral, roomy, streamed, tool, whole
from tests.server.fake import FakeEngineClient, replay
from tests.server.text.real_templates import ALL, LLAMA_31
from tests.server.vocab import EOS, byte_level, ids_of

NESTED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "é"]},
        "many": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2},
    },
    "required": ["kind", "many"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": False}},
}
NAMED_G = {"type": "function", "function": {"name": "g"}}
BOTH = [tool("f", parameters=NESTED), tool("g")]


def grammar_of(client: Client, **parameters: Any) -> Grammar | None:
    reply = client.chat(**parameters)
    assert reply.status == 200, reply.error
    return client.engine.submitted[-1].params.grammar


def sampled(tokenizer: Tokenizer, grammar: Grammar, seed: int) -> list[int]:
    """Draws ids that follow the grammar. It prefers those that end something, so that strings stay short."""
    rng = random.Random(seed)
    model = LLTokenizer(tokenizer.backend.to_str(), eos_token=[EOS])
    matcher = LLMatcher(model, grammar_from("grammar", grammar.text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids: list[int] = []
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [id for id in range(tokenizer.vocab_size) if mask[id // 8] >> id % 8 & 1]
        closing = [id for id in allowed if id in ids_of('"}],') or id == EOS]
        likeliness, further = onward(ids)
        if further in allowed and rng.random() < likeliness:
            closing = allowed = [further]
        ids.append(rng.choice(closing if closing and rng.random() < 0.6 else allowed))
        assert matcher.consume_token(ids[-1])
        assert len(ids) < 3000
    return ids


def onward(ids: list[int]) -> tuple[float, int]:
    """Returns the id that begins the end of a value between tags, or goes on with it, and how likely it should be."""
    end = ids_of("\n</parameter>")
    begun = next(length for length in range(len(end) - 1, -1, -1) if ids[len(ids) - length :] == end[:length])
    return (0.97 if begun > 1 else 0.3), end[begun]


def tokenizer_of(format: CallFormat) -> Tokenizer:
    match format:
        case CallFormat(tagged=True):
            return byte_level(ALL["qwen_3_coder"])
        case CallFormat(marker="<|tool_call|>"):
            return granite()
        case CallFormat(named=True):
            return mistral(ALL["mistral_small"], "[ARGS]", "[CALL_ID]")
        case CallFormat(marker=""):
            return byte_level(LLAMA_31)
        case CallFormat(end=""):
            return mistral()
        case _:
            return byte_level()


@pytest.mark.parametrize(
    "format", [JSON, MISTRAL, MISTRAL_NAMED, LLAMA, TAGGED, GRANITE], ids=lambda format: str(format)
)
@pytest.mark.parametrize("choice", ["required", "one"])
def test_what_the_grammar_lets_through_are_calls(format: CallFormat, choice: str) -> None:
    tokenizer = tokenizer_of(format)
    parameters = {"tools": BOTH, "tool_choice": "required", "parallel_tool_calls": choice == "required"}
    assert tokenizer.template is not None and format_of(tokenizer.template) == format
    grammar = grammar_of(roomy(replay((65,)), tokenizer), **parameters)
    assert grammar is not None
    for seed in range(6):
        answer = whole(roomy(replay([*sampled(tokenizer, grammar, seed), EOS]), tokenizer).chat(**parameters))[0]
        assert answer["content"] == "" and 1 <= len(answer["calls"]) <= (16 if choice == "required" else 1)
        assert answer["finish_reason"] == "tool_calls"
        for call in answer["calls"]:
            schema = next(each for each in BOTH if each["function"]["name"] == call["name"])["function"]["parameters"]
            jsonschema.validate(json.loads(call["arguments"]), schema)


def test_a_named_tool_is_the_only_one() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    grammar = grammar_of(client, tools=TOOLS, tool_choice=NAMED_G)
    assert grammar is not None and '"name\\": \\"g' in grammar.text and '"name\\": \\"f' not in grammar.text
    text = "".join(map(chr, (id - 3 for id in sampled(client.tokenizer, grammar, 1) if id != EOS)))
    assert text.count("<tool_call>") == 1
    prompt = client.tokenizer.backend.decode(list(client.engine.submitted[-1].prompt))
    assert '"name": "f"' in prompt and '"name": "g"' in prompt


def test_demanded_calls_are_streamed() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    for choice in ("required", NAMED_G):
        expected = whole(client.chat(tools=TOOLS, tool_choice=choice))
        assert streamed(client.chat(tools=TOOLS, tool_choice=choice, stream=True)) == expected
    allowed = {"mode": "required", "tools": [NAMED_G]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    grammar = grammar_of(client, tools=TOOLS, tool_choice=choice)
    assert grammar is not None and '"name\\": \\"f' not in grammar.text


def test_what_is_left_to_the_model_has_no_grammar() -> None:
    client = roomy(replay((65,)))
    for choice in (None, "auto", "none"):
        assert grammar_of(client, tools=TOOLS, tool_choice=choice) is None
    assert client.engine.checked == []


def test_an_answer_of_a_format_may_be_calls_instead() -> None:
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": NESTED}}
    client = roomy(replay((65,)))
    grammar = grammar_of(client, tools=TOOLS, response_format=format)
    assert grammar is not None
    matcher = LLTokenizer(client.tokenizer.backend.to_str(), eos_token=[EOS])
    for text in ('{"kind": "a", "many": []}', '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'):
        each = LLMatcher(matcher, grammar_from("grammar", grammar.text), log_level=0)
        assert each.try_consume_tokens(ids_of(text)) == len(ids_of(text)) and each.is_accepting()
    assert grammar_of(client, tools=TOOLS, guided_regex="a+") == Grammar("regex", "a+")
    demanded = grammar_of(client, tools=TOOLS, tool_choice="required", response_format=format)
    assert demanded is not None and "content" not in demanded.text


def test_a_format_that_is_no_schema() -> None:
    client = Client()
    client.engine.complaint = BadGrammar("no")
    reply = roomy_of(client).chat(tools=TOOLS, guided_json="{")
    assert (reply.status, reply.error["param"]) == (400, "guided_json")


def roomy_of(client: Client) -> Client:
    client.engine.state = roomy(replay((65,))).engine.state
    return client


class Refusing(FakeEngineClient):
    """Refuses every grammar that contains `refused`."""

    refused = ""

    async def check(self, grammar: Grammar, caller: str = "") -> None:
        await super().check(grammar, caller)
        if self.refused in grammar.text:
            raise BadGrammar("This cannot be kept to.")


def test_the_tool_that_cannot_be_kept_to_is_named() -> None:
    engine = Refusing()
    engine.refused = '"kind"'
    client = roomy_of(Client(engine))
    for choice, status in (("required", 400), (NAMED_G, 200), ("auto", 200)):
        reply = client.chat(tools=[tool("g"), tool("f", parameters=NESTED)], tool_choice=choice)
        assert reply.status == status
        assert status == 200 or reply.error["param"] == "tools.1.function.parameters"


def test_a_parser_reads_every_way_to_write_it() -> None:
    parser = CallParser(MISTRAL, {"f": {}}, lambda: "id")
    parts = [*parser.push('[TOOL_CALLS][{"name":"f","arguments":{}}]'), *parser.flush()]
    assert len(ParsedDelta(0, tuple(parts)).tool_calls) == 1


def property_of(key: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {key: schema}, "required": [key], **more}


PLACE = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}
IN_TAGS = [
    {"type": "object", "properties": {}},
    property_of("a", {"type": "string"}),
    property_of(
        "a", {"type": "string", "minLength": 2, "maxLength": 3, "description": "d"}, additionalProperties=False
    ),
    property_of("a", {"enum": ["b", "null", 1]}),
    property_of("a", {"const": "b c"}),
    property_of("a", {"type": "integer", "minimum": 3, "maximum": 12}),
    property_of("a", {"type": ["boolean", "null"]}),
    property_of("a", {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}], "default": None}),
    property_of("a", {"$ref": "#/$defs/kind"}, **{"$defs": {"kind": {"enum": ["x", "y"], "title": "Kind"}}}),
    property_of(
        "a", {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2}, **{"$defs": {"place": PLACE}}
    ),
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {}, "c": PLACE}, "required": ["c"]},
]
AS_JSON = [
    property_of("a", {"type": "string", "pattern": "^x+$"}),
    property_of("a", {"type": "string", "format": "date"}),
    property_of("a", {"type": ["integer", "string"]}),
    property_of("a", {"enum": ["</parameter>"]}),
    property_of("a", {"anyOf": [{"$ref": "#/properties/b"}, {"type": "integer"}]}),
    property_of("a>b", {"type": "integer"}),
    property_of("a", {"type": "integer"}, minProperties=1),
    {"type": "object", "properties": {}, "required": ["a"]},
]
TOO_MUCH = [
    {"type": "object", "properties": {f"p{number}": {} for number in range(65)}},
    property_of("a", {"type": "integer", "description": "x" * 100_000}),
]
BROKEN = [
    {"type": "object", "required": 5},
    {"type": "object", "required": [{}]},
    {"type": "object", "required": "a", "properties": {"a": {}}},
    *(property_of("a", {key: value}) for key in ("$ref", "anyOf", "enum") for value in (5, {}, "x", [])),
    *(property_of("a", {"minLength": value}) for value in (-1, 0.5, {}, "x", None)),
    property_of("a", {"anyOf": [{}, 5, {"type": "string", "enum": 5}]}),
    property_of("a", {"type": "string", "maxLength": -1}),
    property_of("a", {"type": "string", "minLength": 3, "maxLength": 2}),
]


@pytest.mark.parametrize("schema", IN_TAGS + AS_JSON, ids=lambda schema: json.dumps(schema)[:60])
def test_demanded_calls_in_tags_keep_to_the_schema_or_are_json(schema: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(TAGGED)
    parameters = {"tools": [tool("f", parameters=schema)], "tool_choice": "required", "parallel_tool_calls": False}
    grammar = grammar_of(roomy(replay((65,)), tokenizer), **parameters)
    assert grammar is not None and ("<function=f>" in grammar.text) == (schema in IN_TAGS)
    if "#/properties/b" in grammar.text:
        return  # the schema is refused when it is tried
    for seed in range(8):
        answer = whole(roomy(replay([*sampled(tokenizer, grammar, seed), EOS]), tokenizer).chat(**parameters))[0]
        assert answer["content"] == "" and answer["finish_reason"] == "tool_calls"
        jsonschema.validate(json.loads(answer["calls"][0]["arguments"]), schema)


def test_a_demanded_text_holds_no_tags() -> None:
    client = roomy(replay((65,)), tokenizer_of(TAGGED))
    grammar = grammar_of(client, tools=[tool("f", parameters=IN_TAGS[1])], tool_choice="required")
    assert grammar is not None
    model = LLTokenizer(client.tokenizer.backend.to_str(), eos_token=[EOS])
    for value, allowed in (("x\n<p> y\n\n", True), ("", True), ("</parameter>", False), ("a<function=f>", False)):
        matcher = LLMatcher(model, grammar_from("grammar", grammar.text), log_level=0)
        text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
        assert (matcher.try_consume_tokens(ids_of(text)) == len(ids_of(text)) and matcher.is_accepting()) == allowed


@pytest.mark.parametrize("schema", TOO_MUCH + BROKEN, ids=lambda schema: json.dumps(schema)[:80])
def test_a_schema_that_is_too_much_or_broken_is_left_to_the_form_of_json(schema: dict[str, Any]) -> None:
    assert tagged_call(0, Tool.model_validate(tool("f", parameters=schema))) is None
