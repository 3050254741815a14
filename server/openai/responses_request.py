"""Describes what clients send to /v1/responses, and translates it into a chat request."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo.server.conversation.translation import TranslatedRequest, declared
from octavo.server.generation.experts import ExpertFields
from octavo.server.generation.parameters import UNSUPPORTED
from octavo.server.generation.request import MAX_LOGPROBS
from octavo.server.generation.structured import refuse_unknown
from octavo.server.http.errors import InvalidRequest, missing_parameter
from octavo.server.http.fields import Object, refused_as

# The chat request's fields, and what they are called in this body: for errors.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}
# These fields refer to something kept between requests. Nothing is kept here, so they are refused.
STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
LOGPROBS = "message.output_text.logprobs"  # the only value of `include` that has an effect
REQUIRED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class InputText(Object):
    type: Literal["input_text", "output_text"]
    """Says who wrote the text; this model reads no other parts."""
    text: str
    """Holds the text."""


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _as_items(given: Any) -> Any:
    if not isinstance(given, list):
        return [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [
        _as_reasoning(item) if isinstance(item, dict) and item.get("type") == "reasoning" else item for item in given
    ]


def _as_reasoning(item: dict[str, Any]) -> dict[str, Any]:
    """Returns what can be read of a reasoning item, which may be another model's: its text, or else its summary."""
    for parts in (item.get("content"), item.get("summary")):
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if text := "\n\n".join(text for text in texts if isinstance(text, str)):
            return {"type": "reasoning", "content": text}
    return {"type": "reasoning"}


Parts = Annotated[list[InputText], BeforeValidator(_as_parts, json_schema_input_type=str | list[InputText])]


class Item(Object):
    """Is a message, a call that the model made, the call's output, or the reasoning before a message or a call.

    A message needs role and content; a call needs call_id and name; an output needs call_id and output. Reasoning that
    another model's owner has encrypted is passed over.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    """Says what the item is. The default is a message."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    """Says who speaks in a message; `developer` is the newer name of `system`."""
    content: Parts | None = None
    """Holds what is said in a message or in reasoning, as a string or text parts."""
    call_id: str | None = None
    """Identifies a call; the call's output has the same id."""
    name: str | None = None
    """Names the function of a call."""
    arguments: str | None = None
    """Holds the arguments of a call, as JSON text. Null and empty text mean no arguments."""
    output: Parts | None = None
    """Holds what the function returned, as a string or text parts."""

    def check(self, position: int) -> None:
        """Raises InvalidRequest if something is missing."""
        given = declared(self)
        for name in REQUIRED[self.type]:
            if name not in given and (name, self.role) != ("content", "assistant"):  # an assistant may say nothing
                raise missing_parameter(f"input.{position}.{name}")


class FunctionTool(Object):
    type: Literal["function"]
    """Is always `function`: this server has no tools of other types."""
    name: str
    """Names the function for the model."""
    description: str | None = None
    """Tells the model when and how to use the function."""
    parameters: dict[str, Any] | None = None
    """Gives a JSON schema of the arguments. By default the function takes none."""
    strict: bool | None = None
    """Changes nothing: calls that `tool_choice` demands keep to the schema whatever this says."""

    def chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {key: value for key, value in declared(self).items() if key != "type"}}


class NamedFunction(Object):
    type: Literal["function"]
    """Is always `function`."""
    name: str
    """Names one of the functions in `tools`."""

    def chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name}}


class AllowedTools(Object):
    type: Literal["allowed_tools"]
    """Is always `allowed_tools`: the model may call some of the tools."""
    mode: Literal["auto", "required"]
    """Demands a call if it is `required`."""
    tools: list[NamedFunction]
    """Lists the tools that may be called."""


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedFunction | AllowedTools,
    refused_as(
        'must be "none", "auto", "required", {"type": "function", "name": ...} or '
        '{"type": "allowed_tools", "mode": ..., "tools": [...]}'
    ),
]


class Format(Object):
    type: Literal["text", "json_object", "json_schema"]
    """Chooses between any text, any JSON object, and JSON that validates against a schema."""
    name: str | None = None
    """Names the schema."""
    description: str | None = None
    """Describes what the schema is for."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """Gives the JSON schema."""
    strict: bool | None = None
    """Changes nothing: the answer always keeps to the schema."""

    def check(self) -> None:
        """Raises InvalidRequest if the schema is missing or has no name, or if a field does not belong to the type."""
        refuse_unknown(self, "text.format")
        if self.type == "text" and self.schema_ is not None:
            raise InvalidRequest("{param} does not belong to the type text.", "text.format.schema")
        for name in ("name", "schema"):
            if self.type == "json_schema" and name not in declared(self):
                raise missing_parameter(f"text.format.{name}")

    def repeated(self) -> dict[str, Any]:
        """Returns the fields that mean something for the type."""
        return declared(self) if self.type == "json_schema" else {"type": self.type}

    def chat(self) -> dict[str, Any]:
        if self.type != "json_schema":
            return {"type": self.type} | ({} if self.schema_ is None else {"schema": self.schema_})
        rest = {key: value for key, value in self.repeated().items() if key != "type"}
        return {"type": self.type, "json_schema": rest} if rest else {"type": self.type}


class TextConfig(Object):
    format: Format | None = None
    """Says what the text must be. The default is any text."""
    verbosity: str | None = None
    """Is only accepted as medium."""

    def check(self) -> None:
        """Raises InvalidRequest for what nobody here knows: a schema one level too high asks for something, too."""
        refuse_unknown(self, "text")
        if self.format is not None:
            self.format.check()


class Reasoning(Object):
    effort: str | None = None
    """Says how long the model reasons, if its template knows degrees: none, low, medium or high."""


class ResponsesRequest(TranslatedRequest, ExpertFields):
    input: Annotated[
        list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item]), Field(min_length=1)
    ]
    """Holds what the user says, or the items of the conversation so far, oldest first."""
    instructions: str | None = None
    """Gives a system message that precedes the input."""
    max_output_tokens: int | None = Field(None, ge=1)
    """Limits the tokens of the answer. The default is the rest of the context."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Makes the choice of tokens more varied; 0 always takes the likeliest. The default is the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens whose probabilities add up to this. The default is the checkpoint's, or 1."""
    text: TextConfig | None = None
    """Says what the answer's text must be: its `format` is text, json_object or json_schema."""
    tools: list[FunctionTool] | None = None
    """Lists the functions that the model may call. There are no built-in tools."""
    tool_choice: ToolChoice | None = None
    """Leaves calls to the model (auto, the default), demands (required) or forbids them (none), or names a function."""
    parallel_tool_calls: bool | None = None
    """Allows several calls in one answer. The default is true."""
    include: list[str] | None = None
    """Adds log-probabilities to the text if it contains `message.output_text.logprobs`."""
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Asks for so many of the likeliest tokens in each place, with the log-probabilities."""
    reasoning: Reasoning | None = None
    """Says whether and how long the model reasons before it answers."""
    truncation: Literal["disabled"] | None = None
    """Is always `disabled`: an input that does not fit is an error, and nothing is left out of it."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Gives up to 16 notes, which the answer repeats.

    `topic` is the label under which /v1/experts counts the request.
    """
    store: bool | None = None
    """Changes nothing: nothing is stored."""

    def check(self) -> None:
        super().check()
        for name in STATEFUL:
            if (self.model_extra or {}).get(name):
                template = "{param} is not supported: this server keeps nothing between requests; send the whole input."
                raise InvalidRequest(template, name, UNSUPPORTED)
        if self.text is not None:
            self.text.check()
        for position, item in enumerate(self.input):
            item.check(position)

    @property
    def includes_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def chat(self) -> dict[str, Any]:
        """Returns the body of the chat request."""
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
                "metadata": self.metadata,
                "return_routed_experts": self.return_routed_experts,
                "routed_experts_start_len": self.routed_experts_start_len,
                "expert_mask": self.expert_mask,
                "expert_bias": self.expert_bias,
            }
        )

    def _system(self) -> Iterator[dict[str, Any]]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}


def _messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Returns the chat's messages.

    Calls join the assistant's message that they follow, and reasoning what it leads to: templates want one turn.
    """
    messages: list[dict[str, Any]] = []
    thoughts: list[str] = []  # that lead to what comes next
    for item in items:
        match item.type:
            case "reasoning":
                thoughts.append(_text(item.content))
                continue
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(item))
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            case "message":
                messages.append({"role": item.role, "content": _text(item.content)})
        if any(thoughts) and messages[-1]["role"] == "assistant":
            before = messages[-1].get("reasoning_content", "")
            messages[-1]["reasoning_content"] = "\n\n".join(filter(None, [before, *thoughts]))
        thoughts = []
    return messages


def _call(item: Item) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


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
