"""A ChatTemplate turns a conversation into the text of a prompt, in the form that the checkpoint was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Self

import jinja2

from octavo.server.http.errors import InvalidRequest, StartupError
from octavo.server.text.checkpoint_files import read_object, read_text
from octavo.server.text.exchanges import without_calls
from octavo.server.text.special_tokens import SpecialTokens
from octavo.server.text.template_adaptation import nearest
from octavo.server.text.template_capabilities import Capabilities, find_capabilities
from octavo.server.text.template_environment import compiled
from octavo.server.text.traced import Traced, of_template, plain
from octavo.server.text.turns import Tools, Turn

_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_ROLES = {role: of_template(role) for role in ("system", "user", "assistant", "tool")}  # No client's words.
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
_CUT = "\ue000cut\ue000"  # marks where the final message ends, to find that place in the rendered text


@dataclass(frozen=True, slots=True)
class Rendering:
    """Holds what a conversation is rendered with, besides its turns."""

    tools: Tools = ()
    add_generation_prompt: bool = True
    continue_final: bool = False  # leaves the last turn open, and adds no generation prompt
    variables: Mapping[str, Any] = field(default_factory=dict)  # further variables for this template


PLAIN = Rendering()


class ChatTemplate:
    """Renders conversations, also those that the checkpoint's template itself refuses.

    Mixtral's, for example, takes neither a system message nor two turns of one role in a row. What a template takes is
    found out once, by trying.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, tool_source: str | None = None
    ) -> None:
        """`special_tokens` holds bos_token, eos_token and so on, by the names that templates use.

        `tool_source` is the template of conversations with tools, where the checkpoint has one of its own. Raises
        jinja2.TemplateSyntaxError.
        """
        self.source = source
        self._template = compiled(source)
        self.special_tokens = {name: of_template(text) for name, text in (special_tokens or {}).items()}
        self._no_tools: list[Any] | None = None  # what `tools` is without any
        self.capabilities = self._tried()
        self.for_tools: ChatTemplate = self if tool_source is None else ChatTemplate(tool_source, special_tokens)

    def _tried(self) -> Capabilities:
        """Finds out what the template can render.

        A template that is meant for tools alone may go through them although there are none, and needs an empty list.
        """
        found = find_capabilities(lambda turns, tools: self._render(turns, Rendering(tools)))
        if found.complete or self._no_tools is not None:
            return found
        self._no_tools = []
        if (second := self._tried()).complete:
            return second
        self._no_tools = None
        return found

    @classmethod
    def from_directory(cls, directory: Path) -> Self | None:
        """Reads chat_template.jinja, or tokenizer_config.json, where older versions of transformers put the template.

        Returns None without a template. Raises StartupError when a file is broken.
        """
        within = _templates(directory, read_object(directory / "tokenizer_config.json").get("chat_template"))
        source, tool_source = (read_text(directory / file) for file in ("chat_template.jinja", TOOL_TEMPLATE))
        source = within.get("default") if source is None else source
        tool_source = within.get("tool_use") if tool_source is None else tool_source
        if source is None:
            return None
        special_tokens = SpecialTokens.from_directory(directory).texts
        try:
            return cls(source, special_tokens, None if tool_source == source else tool_source)
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"The chat template of {directory} is broken at line {error.lineno} ({error.message}); correct it."
            )
            raise StartupError(message) from error

    def render(self, messages: Sequence[Turn], rendering: Rendering = PLAIN) -> Traced:
        """Returns the text of the prompt, which knows what the template wrote of it. Raises InvalidRequest.

        With `continue_final` the prompt ends with the last message, without what the template closes it with.
        """
        if reserved := _OWN_VARIABLES & rendering.variables.keys():
            template = "{param} must not set '{variable}', which has a parameter of its own."
            raise InvalidRequest(template, "chat_template_kwargs", variable=min(reserved))
        if rendering.continue_final:
            final = without_calls(messages[-1])
            messages = [*messages[:-1], {**final, "content": final["content"] + _CUT}]
        text = nearest(messages, rendering.tools, self.capabilities, partial(self._rendered_or_refused, rendering))
        return _before_cut(text) if rendering.continue_final else text

    def _rendered_or_refused(self, rendering: Rendering, messages: Sequence[Turn], tools: Tools) -> Traced:
        try:
            return self._render(messages, replace(rendering, tools=tools))
        except jinja2.TemplateError as error:
            reason = plain(str(error.message))
            template = "The model's chat template refuses these messages: {reason}"
            raise InvalidRequest(template, "messages", reason=reason) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            template = "The model's chat template fails on these messages: {reason}"
            raise InvalidRequest(template, "messages", reason=error) from error

    def _render(self, messages: Sequence[Turn], rendering: Rendering) -> Traced:
        variables = {**self.special_tokens, **rendering.variables}
        text = self._template.render(
            variables,
            messages=[_as_message(turn) for turn in messages],
            tools=list(rendering.tools) or self._no_tools,
            documents=None,
            add_generation_prompt=rendering.add_generation_prompt and not rendering.continue_final,
        )
        return Traced(text)


def _as_message(turn: Turn) -> dict[str, Any]:
    """Returns a turn as templates read it: they call reasoning by several names."""
    message = {**turn, "role": _ROLES.get(turn["role"], turn["role"])}
    if (reasoning := turn.get("reasoning_content")) is not None:
        message |= {"reasoning": reasoning, "thinking": reasoning}
    return message


def _before_cut(text: Traced) -> Traced:
    """Returns the text up to the mark. Raises InvalidRequest when the template has not rendered the mark."""
    end = text.rfind(_CUT)
    if end < 0:
        message = "The model's chat template does not show the last message, so that it cannot be continued."
        raise InvalidRequest(message, "continue_final_message")
    return text[:end]


def _templates(directory: Path, found: Any) -> dict[str, str]:
    """Returns templates by their names, of which there may be several: [{"name": ..., "template": ...}, ...].

    Raises StartupError for what is no template.
    """
    entries = [] if found is None else found if isinstance(found, list) else [{"name": "default", "template": found}]
    named: dict[str, str] = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "template": str(template)}:
                named.setdefault(name, template)
            case _:
                message = f"in tokenizer_config.json, chat_template has {shortened(entry)}, which is no template"
                raise StartupError(f"Cannot serve {directory}: {message}; fetch or save it again.")
    return named
