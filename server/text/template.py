"""Chat templates: a conversation becomes the prompt that the checkpoint was trained on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.server.http.errors import InvalidRequest, StartupError
from octavo.server.text.template_adaptation import (
    Turn,
    TurnCall,
    as_user,
    described,
    merged,
    with_short_ids,
    without_calls,
)

_FIRST, _SECOND = "Xyzzy", "Plugh"  # words that no template has of its own
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _FIRST,
        "description": _SECOND,
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_CUT = "\ue000cut\ue000"  # stands where the final message ends, to find that place again


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a conversation is rendered with, besides its turns."""

    tools: Sequence[Mapping[str, Any]] = ()  # as OpenAI describes them
    add_generation_prompt: bool = True
    continue_final: bool = False  # the last turn is not closed; no generation prompt then
    variables: Mapping[str, Any] = field(default_factory=dict)  # further ones, for this template


PLAIN = Rendering()


class _GenerationTag(Extension):
    """`{% generation %}` marks what a trainer learns from; a server only has to render it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders conversations, also those that the template itself refuses: Mixtral's takes neither a system message
    nor two turns of one role in a row. Which of these it takes is found out once, by trying."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, tool_source: str | None = None
    ) -> None:
        """special_tokens: bos_token, eos_token and so on, by the names that templates use.

        tool_source: the template of conversations with tools, where they have one of their own. Raises
        jinja2.TemplateSyntaxError.
        """
        self.source = source
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens or {})
        system, user = _turn("system", _FIRST), _turn("user", _SECOND)
        self._takes_system = self._shows([system, user])
        self._takes_repeats = self._shows([_turn("user", _FIRST), user])
        self.takes_tools = self._shows([user], tools=[_TOOL])
        self.takes_calls = self._shows(_exchange("123456789"))
        self.wants_short_ids = self.takes_calls and not self._shows(_exchange("call_123456789abcdef"))
        self.for_tools: ChatTemplate = self if tool_source is None else ChatTemplate(tool_source, special_tokens)

    def replaced(self, source: str) -> Self:
        """Another template for the same model. Raises jinja2.TemplateSyntaxError."""
        return type(self)(source, self._special_tokens)

    @classmethod
    def from_directory(cls, directory: Path) -> Self | None:
        """chat_template.jinja or, before transformers had that file, tokenizer_config.json; None without a template.

        Raises StartupError when a file is broken.
        """
        config = _read_config(directory / "tokenizer_config.json")
        path, tool_path = directory / "chat_template.jinja", directory / "additional_chat_templates" / "tool_use.jinja"
        source = _read(path) if path.is_file() else _named(config.get("chat_template"), "default")
        tool_source = _read(tool_path) if tool_path.is_file() else _named(config.get("chat_template"), "tool_use")
        if source is None:
            return None
        try:
            return cls(source, _special_tokens(config), None if tool_source == source else tool_source)
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"The chat template of {directory} is broken at line {error.lineno} ({error.message}); correct it."
            )
            raise StartupError(message) from error

    def render(self, messages: Sequence[Turn], rendering: Rendering = PLAIN) -> str:
        """The prompt, as a rule up to where the assistant begins to speak. Raises InvalidRequest.

        A final message that shall go on is cut where it ends, before what the template closes it with.
        """
        if reserved := _OWN_VARIABLES & rendering.variables.keys():
            message = f"'chat_template_kwargs' must not set '{min(reserved)}', which has a parameter of its own."
            raise InvalidRequest(message, "chat_template_kwargs")
        if rendering.continue_final:
            final = messages[-1]
            messages = [*messages[:-1], {**final, "content": final["content"] + _CUT}]
        text = self._rendered_or_refused(self._adapted(messages, rendering.tools), rendering)
        return _before_cut(text) if rendering.continue_final else text

    def _rendered_or_refused(self, messages: Sequence[Turn], rendering: Rendering) -> str:
        try:
            return self._render(messages, rendering)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error.message}", "messages"
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise InvalidRequest(f"The model's chat template fails on these messages: {error}", "messages") from error

    def _adapted(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> Sequence[Turn]:
        """What the template does not take is said in a form that it does."""
        if tools and not self.takes_tools:
            messages = described(messages, tools)
        if not self.takes_calls:
            messages = [without_calls(message) for message in messages]
        elif self.wants_short_ids:
            messages = [with_short_ids(message) for message in messages]
        if self._takes_system and self._takes_repeats:
            return messages
        # a template that wants turns to alternate takes one system message, first
        leading = 1 if self._takes_system else 0
        folded = [*messages[:leading], *(as_user(message) for message in messages[leading:])]
        return folded if self._takes_repeats else merged(folded)

    def _shows(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Whether the template renders all of this."""
        try:
            text = self._render(messages, Rendering(tools))
        except Exception:  # whatever a template may do with an unusual conversation, it does not take it
            return False
        functions = [call["function"] for message in messages for call in message.get("tool_calls", ())]
        words = [function["name"] for function in functions] + [key for f in functions for key in f["arguments"]]
        names = [tool["function"]["name"] for tool in tools]
        return all(word in text for word in (*(message["content"] for message in messages), *words, *names))

    def _render(self, messages: Sequence[Turn], rendering: Rendering) -> str:
        variables = {**self._special_tokens, **rendering.variables}
        return self._template.render(
            variables,
            messages=messages,
            tools=list(rendering.tools) or None,
            documents=None,
            add_generation_prompt=rendering.add_generation_prompt and not rendering.continue_final,
        )


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _exchange(id: str) -> list[Turn]:
    """A call and its result."""
    call: TurnCall = {"id": id, "type": "function", "function": {"name": "Frotz", "arguments": {"Nitfol": 1}}}
    result: Turn = {"role": "tool", "content": _SECOND, "name": "Frotz", "tool_call_id": id}
    return [_turn("user", _FIRST), {"role": "assistant", "content": "", "tool_calls": [call]}, result]


def _before_cut(text: str) -> str:
    """The last turn without what closes it. Raises InvalidRequest when the template does not show it."""
    before, cut, _ = text.rpartition(_CUT)
    if not cut:
        message = "The model's chat template does not show the last message, so that it cannot be continued."
        raise InvalidRequest(message, "continue_final_message")
    return before


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders templates: checkpoints are written for exactly this environment."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Unlike jinja2's own: no HTML escapes, no markup."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        raise StartupError(f"{path} is not valid JSON ({error}); fetch or save it again.") from error
    if not isinstance(config, dict):
        raise StartupError(f"{path} does not hold a JSON object; fetch or save it again.")
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not UTF-8 text ({error}); fetch or save it again.") from error


def _named(template: Any, name: str) -> str | None:
    """A template, or the one of this name among several: [{"name": ..., "template": ...}, ...]."""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == name]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, each a string or the dict of an AddedToken."""
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value["content"] if isinstance(value, dict) else value for name, value in entries.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
