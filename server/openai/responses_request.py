"""What clients send to /v1/responses, and the chat request that it amounts to."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo.server.conversation.translation import TranslatedRequest, declared
from octavo.server.generation.request import MAX_LOGPROBS
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.fields import Object, refused_as

# The chat's complaints, in this body's words.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}
# Nothing is kept between requests: what refers to something kept is refused.
STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
LOGPROBS = "message.output_text.logprobs"  # the one of `include` that there is something to include for
REQUIRED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class InputText(Object):
    type: Literal["input_text", "output_text"]
    """Text; other parts this model does not read."""
    text: str
    """The text itself."""


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


Parts = Annotated[list[InputText], BeforeValidator(_as_parts, json_schema_input_type=str | list[InputText])]


class Item(Object):
    """A message, a call that the model made, or what came of it; `check` says what each of them needs."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    """A message unless it says otherwise."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    """Of a message: who says it; `developer` is the newer name of `system`."""
    content: Parts | None = None
    """Of a message: what is said, a string or text parts."""
    call_id: str | None = None
    """Of a call and of its output: what joins the two."""
    name: str | None = None
    """Of a call: the function's name."""
    arguments: str | None = None
    """Of a call: the arguments, as JSON text."""
    output: Parts | None = None
    """Of an output: what the function returned, a string or text parts."""

    def check(self, position: int) -> None:
        """Raises InvalidRequest for what is missing."""
        given = declared(self)
        for name in REQUIRED[self.type]:
            if name not in given:
                raise InvalidRequest("The required parameter {param} is missing.", f"input.{position}.{name}")


class FunctionTool(Object):
    type: Literal["function"]
    """A function; tools of other types this server does not have."""
    name: str
    """What the model calls it."""
    description: str | None = None
    """When and how to use it, for the model."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments. Default: none are taken."""
    strict: bool | None = None
    """Whether the arguments must validate against the schema."""

    def chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {key: value for key, value in declared(self).items() if key != "type"}}


class NamedFunction(Object):
    type: Literal["function"]
    """A function."""
    name: str
    """One of those in `tools`."""

    def chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name}}


class AllowedTools(Object):
    type: Literal["allowed_tools"]
    """Some of the tools."""
    mode: Literal["auto", "required"]
    """Whether one of them must be called."""
    tools: list[NamedFunction]
    """Those that may be called."""


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedFunction | AllowedTools,
    refused_as(
        'must be "none", "auto", "required", {"type": "function", "name": ...} or '
        '{"type": "allowed_tools", "mode": ..., "tools": [...]}'
    ),
]


class Format(Object):
    type: Literal["text", "json_object", "json_schema"]
    """Any text, any JSON object, or JSON that validates against a schema."""
    name: str | None = None
    """Of a schema: its name."""
    description: str | None = None
    """Of a schema: what it is for."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """The JSON schema itself."""
    strict: bool | None = None
    """Whether the answer must validate against it."""

    def check(self) -> None:
        """Raises InvalidRequest for a schema that is missing, or has no name."""
        for name in ("name", "schema"):
            if self.type == "json_schema" and name not in declared(self):
                raise InvalidRequest("The required parameter {param} is missing.", f"text.format.{name}")

    def repeated(self) -> dict[str, Any]:
        """What of it means something."""
        return declared(self) if self.type == "json_schema" else {"type": self.type}

    def chat(self) -> dict[str, Any]:
        rest = {key: value for key, value in self.repeated().items() if key != "type"}
        return {"type": self.type, "json_schema": rest} if rest else {"type": self.type}


class TextConfig(Object):
    format: Format | None = None
    """Default: any text."""
    verbosity: str | None = None
    """Accepted where it is medium."""


class Reasoning(Object):
    effort: str | None = None
    """Accepted where it is none: this model does not reason aside."""


class ResponsesRequest(TranslatedRequest):
    input: Annotated[
        list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item]), Field(min_length=1)
    ]
    """What the user says, or the items of the conversation so far, oldest first."""
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: int | None = Field(None, ge=1)
    """The most tokens the answer may have. Default: the rest of the context."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; more is more varied. Default: the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens that add up to this share. Default: the checkpoint's, or 1."""
    text: TextConfig | None = None
    """What the answer's text must be: `format` is text, json_object or json_schema."""
    tools: list[FunctionTool] | None = None
    """Functions that the model may call. There are no built-in tools."""
    tool_choice: ToolChoice | None = None
    """none, auto (the default), required, or the function to call."""
    parallel_tool_calls: bool | None = None
    """Whether there may be several calls in one answer. Default: true."""
    include: list[str] | None = None
    """`message.output_text.logprobs` adds log-probabilities to the text."""
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """How many of the likeliest tokens to tell with the log-probabilities."""
    reasoning: Reasoning | None = None
    """Accepted where it asks for none."""
    truncation: Literal["disabled"] | None = None
    """An input that does not fit is an error; nothing is left out of it."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Up to 16 notes, which the answer repeats."""
    store: bool | None = None
    """Accepted; nothing is stored, whatever it says."""

    def check(self) -> None:
        super().check()
        for name in STATEFUL:
            if (self.model_extra or {}).get(name):
                template = "{param} is not supported: this server keeps nothing between requests; send the whole input."
                raise InvalidRequest(template, name)
        if self.text is not None and self.text.format is not None:
            self.text.format.check()
        for position, item in enumerate(self.input):
            item.check(position)

    @property
    def includes_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def chat(self) -> dict[str, Any]:
        """The body of the chat request."""
        text = self.text or TextConfig()
        return self.amounting_to(
            {
                "messages": [*self._system(), *_messages(self.input)],
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "tools": None if self.tools is None else [tool.chat() for tool in self.tools],
                "tool_choice": _tool_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": None if text.format is None else text.format.chat(),
                "verbosity": text.verbosity,
                "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
                "logprobs": self.includes_logprobs or None,
                "top_logprobs": self.top_logprobs if self.includes_logprobs else None,
            }
        )

    def _system(self) -> Iterator[dict[str, Any]]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}


def _messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Calls belong to the assistant's message that they follow: templates know them as one turn."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if item.type == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item.type == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        else:
            messages.append({"role": item.role, "content": _text(item.content)})
    return messages


def _text(parts: Sequence[InputText] | None) -> str:
    return "".join(part.text for part in parts or ())


def _tool_choice(choice: ToolChoice | None) -> Any:
    match choice:
        case NamedFunction():
            return choice.chat()
        case AllowedTools():
            allowed = {"mode": choice.mode, "tools": [tool.chat() for tool in choice.tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case _:
            return choice
