"""Makes the grammar of an answer that must consist of calls, in the format in which the model writes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from octavo.engine.api import Grammar
from octavo.server.conversation.grammar_text import json_value, literal, quoted
from octavo.server.conversation.request import ChatRequest
from octavo.server.conversation.tagged_grammar import tagged_call
from octavo.server.conversation.tools import Tool, ToolUse
from octavo.server.generation.structured import Constraint
from octavo.server.text import harmony
from octavo.server.text.call_formats import CallFormat

MOST_CALLS = 16  # per answer; without a limit, a model may go on for ever


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """A CallGrammar makes an answer consist of calls, or of calls or JSON."""

    schemas: tuple[Constraint, ...]  # one for each tool; tried first, so that an error names the tool at fault
    answer: Constraint  # binds the answer


def call_grammar(
    request: ChatRequest, use: ToolUse, format: CallFormat, tokens: Mapping[str, int]
) -> CallGrammar | None:
    """Returns None when the answer is free, or when the request binds it to something else.

    `tokens` holds the ids of the format's markers that are tokens of their own; grammars write these as ids.
    """
    asked = request.constraint()
    content = None if use.required or asked is None or asked.grammar.kind != "json" else asked.grammar.text
    if not use.required and content is None:
        return None
    schemas = tuple(
        Constraint(f"tools.{position}.function.parameters", Grammar("json", json.dumps(tool.schema_of_arguments)))
        for position, tool in enumerate(request.tools or ())
        if tool in use.callable
    )
    rules = [
        "start: calls" if content is None else f"start: calls | content\ncontent: {_content(content, format, tokens)}",
        *_calls(format, tokens, MOST_CALLS if use.parallel else 1),
        "call: " + " | ".join(f"call_{position}" for position in range(len(use.callable))),
        *(_call(position, tool, format, tokens) for position, tool in enumerate(use.callable)),
    ]
    return CallGrammar(schemas, Constraint("tools", Grammar("grammar", "\n".join(rules) + "\n")))


def _content(schema: str, format: CallFormat, tokens: Mapping[str, int]) -> str:
    if not format.harmony:
        return json_value(schema)
    return f'{literal(harmony.CHANNEL, tokens)} "final" {literal(harmony.MESSAGE, tokens)} {json_value(schema)}'


def _calls(format: CallFormat, tokens: Mapping[str, int], most: int) -> list[str]:
    """Returns the rules of one call or several, with the markers around them."""
    if format.harmony:  # A message is a call, and ends the answer.
        header = f'{literal(harmony.CHANNEL, tokens)} "commentary to={harmony.FUNCTIONS}"'
        return [f"calls: {header} call"]
    if not format.marker:
        return [_repeated("calls: call", '"; " call', most)]
    marker, end = literal(format.marker, tokens), literal(format.end, tokens)
    if format.named:
        return [f"calls: marked{{1,{most}}}", f"marked: {marker} call"]
    if format.end:
        return [_repeated("calls: tagged", '"\\n" tagged', most), f'tagged: {marker} "\\n" call "\\n" {end}']
    return [_repeated(f'calls: {marker} " "? "[" call', '", " call', most) + ' "]"']


def _repeated(first: str, more: str, most: int) -> str:
    """Leaves out the repetition for a single call, since the grammars' language does not take a count of 0."""
    return first if most == 1 else f"{first} ({more}){{0,{most - 1}}}"


def _call(position: int, tool: Tool, format: CallFormat, tokens: Mapping[str, int]) -> str:
    """Returns the rules of one call of one tool. A call that tags cannot hold to its schema is written as JSON."""
    if format.tagged and (rules := tagged_call(position, tool)) is not None:
        return "\n".join(rules)
    arguments = f"arguments_{position}: {json_value(json.dumps(tool.schema_of_arguments))}"
    if format.harmony:
        constrained = f'" " {literal(harmony.CONSTRAIN, tokens)} "json" {literal(harmony.MESSAGE, tokens)}'
        return f"call_{position}: {quoted(tool.name)} {constrained} arguments_{position}\n{arguments}"
    if format.named:
        return f"call_{position}: {quoted(tool.name)} {literal('[ARGS]', tokens)} arguments_{position}\n{arguments}"
    head = f'{{"name": {json.dumps(tool.name)}, "{format.key}": '
    return f'call_{position}: {quoted(head)} arguments_{position} "}}"\n{arguments}'
