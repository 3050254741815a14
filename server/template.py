"""Chat templates: a conversation becomes the prompt that the checkpoint was trained on."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import TypedDict

from server.errors import InvalidRequest, StartupError


class Turn(TypedDict):
    role: str
    content: str


class _GenerationTag(Extension):
    """`{% generation %}` marks what a trainer learns from; a server only has to render it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders conversations, also those that the template itself refuses: Mixtral's takes neither a system message
    nor two turns of one role in a row. Which of these it takes is found out once, by trying."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """special_tokens: bos_token, eos_token and so on, by the names that templates use.

        Raises jinja2.TemplateSyntaxError.
        """
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens or {})
        first, second = "Xyzzy", "Plugh"
        self._takes_system = self._keeps([_turn("system", first), _turn("user", second)])
        self._takes_repeats = self._keeps([_turn("user", first), _turn("user", second)])

    @classmethod
    def from_directory(cls, directory: Path) -> Self | None:
        """chat_template.jinja or, before transformers had that file, tokenizer_config.json; None without a template.

        Raises StartupError when a file is broken.
        """
        config = _read_config(directory / "tokenizer_config.json")
        path = directory / "chat_template.jinja"
        source = _read(path) if path.is_file() else _named(config.get("chat_template"))
        if source is None:
            return None
        try:
            return cls(source, _special_tokens(config))
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"The chat template of {directory} is broken at line {error.lineno} ({error.message}); correct it."
            )
            raise StartupError(message) from error

    def render(self, messages: Sequence[Turn]) -> str:
        """The prompt, up to where the assistant begins to speak. Raises InvalidRequest if the template refuses."""
        try:
            return self._render(self._adapted(messages))
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error.message}", "messages"
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise InvalidRequest(f"The model's chat template fails on these messages: {error}", "messages") from error

    def _adapted(self, messages: Sequence[Turn]) -> Sequence[Turn]:
        if self._takes_system and self._takes_repeats:
            return messages
        leading = (
            1 if self._takes_system else 0
        )  # a template that wants turns to alternate takes one system message, first
        folded = [*messages[:leading], *(_as_user(message) for message in messages[leading:])]
        return folded if self._takes_repeats else _merged(folded)

    def _keeps(self, messages: Sequence[Turn]) -> bool:
        """Whether the template renders the messages, all of them."""
        try:
            text = self._render(messages)
        except Exception:  # whatever a template may do with an unusual conversation, it does not take it
            return False
        return all(message["content"] in text for message in messages)

    def _render(self, messages: Sequence[Turn]) -> str:
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
        )


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _as_user(message: Turn) -> Turn:
    return {**message, "role": "user"} if message["role"] == "system" else message


def _merged(messages: Sequence[Turn]) -> list[Turn]:
    """Turns of one role in a row become one, a blank line between them."""
    merged: list[Turn] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {**message, "content": merged[-1]["content"] + "\n\n" + message["content"]}
        else:
            merged.append(message)
    return merged


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


def _named(template: Any) -> str | None:
    """A template, or the one called "default" among several: [{"name": ..., "template": ...}, ...]."""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, each a string or the dict of an AddedToken."""
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value["content"] if isinstance(value, dict) else value for name, value in entries.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
