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
from octavo.server.text.call_formats import JSON, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client
from tests.server.conversation.test_tools import CALLS, TOOLS, mistral, roomy, streamed, tool, whole
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
        ids.append(rng.choice(closing if closing and rng.random() < 0.6 else allowed))
        assert matcher.consume_token(ids[-1])
        assert len(ids) < 3000
    return ids


def tokenizer_of(format: CallFormat) -> Tokenizer:
    match format:
        case CallFormat(named=True):
            return mistral(ALL["mistral_small"], "[ARGS]", "[CALL_ID]")
        case CallFormat(marker=""):
            return byte_level(LLAMA_31)
        case CallFormat(end=""):
            return mistral()
        case _:
            return byte_level()


@pytest.mark.parametrize("format", [JSON, MISTRAL, MISTRAL_NAMED, LLAMA], ids=["json", "mistral", "named", "llama"])
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
    parser = CallParser(MISTRAL, frozenset({"f"}), lambda: "id")
    parts = [*parser.push('[TOOL_CALLS][{"name":"f","arguments":{}}]'), *parser.flush()]
    assert len(ParsedDelta(0, tuple(parts)).tool_calls) == 1
