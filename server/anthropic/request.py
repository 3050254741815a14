"""Describes what clients send to /v1/messages, and translates it into a chat request."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from octavo.server.conversation.request import ChatRequest, Thinking
from octavo.server.conversation.translation import TranslatedRequest, declared
from octavo.server.generation.structured import refuse_unknown
from octavo.server.http.errors import FieldName, InvalidRequest, missing_parameter
from octavo.server.http.fields import Object

# The chat request's fields, and what they are called in this body: for errors.
NAMES = {
    "messages": "messages",
    "continue_final_message": "messages",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "thinking": "thinking",
    "user": "metadata.user_id",
}
# The first two would run on Anthropic's side. An answer of this API has no place for the last.
UNSUPPORTED = ("container", "mcp_servers", "return_routed_experts")
REQUIRED = {"text": ("text",), "tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}
# The only role that may have such blocks.
BELONGS = {"tool_use": "assistant", "tool_result": "user", "thinking": "assistant", "redacted_thinking": "assistant"}


class TextBlock(Object):
    type: Literal["text"]
    """Is always `text`: this model reads no other blocks."""
    text: str
    """Holds the text."""


def _as_blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


class Block(Object):
    """Is text, a call that the model made, the result of a call, or what the model has thought.

    Text needs text; a call needs id and name; a result needs tool_use_id. What another model's owner has redacted is
    passed over.
    """

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    """Says what the block is."""
    text: str | None = None
    """Holds the text of a text block."""
    thinking: str | None = None
    """Holds what the model has thought. The chat template decides whether the model sees it again."""
    id: str | None = None
    """Identifies a call; its result refers to this."""
    name: str | None = None
    """Names the tool of a call."""
    input: Annotated[dict[str, Any] | None, BeforeValidator(_none_if_empty)] = None
    """Holds the arguments of a call. Null and empty text mean no arguments."""
    tool_use_id: str | None = None
    """Names the call that a result belongs to by its id."""
    content: Texts | None = None
    """Holds what the tool returned, as a string or text blocks."""
    is_error: bool | None = None
    """Says that the tool failed. It changes nothing: the content should say how it failed."""

    def check(self, role: str, where: str) -> None:
        """Raises InvalidRequest if something is missing, or does not belong to the role."""
        if BELONGS.get(self.type, role) != role:
            template = "{type} is '{given}', which the role '{role}' does not have."
            raise InvalidRequest(template, where, type=FieldName(f"{where}.type"), given=self.type, role=role)
        given = declared(self)
        for name in REQUIRED.get(self.type, ()):
            if name not in given:
                raise missing_parameter(f"{where}.{name}")


Blocks = Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])]


class Message(Object):
    role: Literal["user", "assistant", "system"]
    """Says who speaks."""
    content: Blocks
    """Holds what is said, as a string or blocks."""


class Tool(Object):
    type: Literal["custom"] | None = None
    """Is always `custom`: this server has no built-in tools."""
    name: str
    """Names the tool for the model."""
    input_schema: dict[str, Any]
    """Gives a JSON schema of the tool's input."""
    description: str | None = None
    """Tells the model when and how to use the tool."""
    strict: bool | None = None
    """Changes nothing: calls that `tool_choice` demands keep to the schema whatever this says."""

    def chat(self) -> dict[str, Any]:
        rest = {key: value for key, value in declared(self).items() if key not in ("type", "input_schema")}
        return {"type": "function", "function": {**rest, "parameters": self.input_schema}}


class ToolChoice(Object):
    type: Literal["auto", "any", "tool", "none"]
    """Leaves the choice to the model, or demands some tool, the named tool or none."""
    name: str | None = None
    """Names the tool; it is required with the type `tool`."""
    disable_parallel_tool_use: bool | None = None
    """Allows one call at most in an answer. The default is false."""

    def chat(self) -> Any:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"any": "required"}.get(self.type, self.type)


class Format(Object):
    type: Literal["json_schema"]
    """Is always `json_schema`: the answer is JSON that validates against a schema."""
    schema_: dict[str, Any] = Field(alias="schema")
    """Gives the JSON schema."""

    def chat(self) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema_, "strict": True}}


class OutputConfig(Object):
    format: Format | None = None
    """Says what the answer's text must be. The default is any text."""
    effort: str | None = None
    """Says how long the model thinks, if its template knows degrees of effort."""


class Edit(Object):
    type: Literal["clear_thinking_20251015"]
    """Asks for what the model has thought to be left out. The chat template decides what the model sees of it."""


class ContextManagement(Object):
    edits: list[Edit] | None = None
    """Lists what is removed from the conversation before the model reads it."""


class Metadata(Object):
    user_id: str | None = None
    """Tells whom the request is for. It changes nothing."""
    topic: str | None = None
    """Names the label under which /v1/experts counts the request. This is an extension."""


class MessagesChat(ChatRequest):
    """Is the chat request that a body here becomes."""

    cuts_max_tokens: ClassVar[bool] = True  # as in Anthropic's API, where clients ask for the most that a model can


class CountRequest(TranslatedRequest):
    """Holds a conversation, with everything that its prompt is made of."""

    messages: list[Message] = Field(min_length=1)
    """Holds the conversation so far, oldest first. If the last message is the assistant's, the answer continues it."""
    system: Texts | None = None
    """Gives a system message that precedes the conversation, as a string or text blocks."""
    tools: list[Tool] | None = None
    """Lists the tools that the model may call."""
    tool_choice: ToolChoice | None = None
    """Says whether the model must call a tool, and which. The default leaves that to the model."""
    thinking: Thinking | None = None
    """Asks the model to think before it answers or not to, if its template lets it choose."""
    context_management: ContextManagement | None = None
    """Is only accepted where it changes nothing."""
    output_config: OutputConfig | None = None
    """Says what the answer must be."""
    output_format: Format | None = None
    """Is an older name of output_config.format."""

    def check(self) -> None:
        super().check()
        self._check_format()
        for name in UNSUPPORTED:
            if (self.model_extra or {}).get(name):
                raise InvalidRequest("{param} is not supported by this server; leave it out.", name)
        if self.tool_choice is not None and self.tool_choice.type == "tool" and self.tool_choice.name is None:
            raise missing_parameter("tool_choice.name")
        for position, message in enumerate(self.messages):
            for index, block in enumerate(message.content):
                block.check(message.role, f"messages.{position}.content.{index}")

    def _check_format(self) -> None:
        """Raises InvalidRequest if the format of the answer is given twice, or asks for something unknown."""
        config = self.output_config or OutputConfig()
        if config.format is not None and self.output_format is not None:
            template, other = "{param} is not allowed with {other}; leave one of them out.", "output_config.format"
            raise InvalidRequest(template, "output_format", other=FieldName(other))
        given = {"output_config.format": config.format, "output_format": self.output_format}
        for field, each in given.items():
            if each is not None:
                refuse_unknown(each, field)
        # Clients send more and more fields here that bind nothing, but these would, one level further down.
        misplaced = (config.model_extra or {}).keys() & {"type", "schema", "json_schema"}
        if misplaced:
            template = "{param} belongs in output_config.format."
            raise InvalidRequest(template, f"output_config.{min(misplaced)}", "unsupported_parameter")

    def chat(self) -> dict[str, Any]:
        """Returns the body of the chat request."""
        return self.amounting_to(self.conversation())

    def conversation(self) -> dict[str, Any]:
        """Returns the fields that are translated, with None where the body says nothing."""
        config, choice = self.output_config or OutputConfig(), self.tool_choice
        format = config.format or self.output_format
        continues = self.messages[-1].role == "assistant"
        return {
            "messages": [*self._system(), *(turn for message in self.messages for turn in _turns(message))],
            "add_generation_prompt": False if continues else None,
            "continue_final_message": True if continues else None,
            "tools": None if self.tools is None else [tool.chat() for tool in self.tools],
            "tool_choice": None if choice is None else choice.chat(),
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "response_format": None if format is None else format.chat(),
            "reasoning_effort": config.effort,
            "thinking": None if self.thinking is None else declared(self.thinking),
        }

    def _system(self) -> Iterator[dict[str, Any]]:
        if self.system:
            yield {"role": "system", "content": _text(self.system)}


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    """Limits the tokens of the answer. A limit that the context does not leave is cut to what it leaves."""
    stop_sequences: list[str] | None = None
    """Gives up to 128 strings that end the answer where they appear; they are not part of its text."""
    temperature: float | None = Field(None, ge=0, le=1)
    """Makes the choice of tokens more varied; 0 always takes the likeliest. The default is the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens whose probabilities add up to this. The default is the checkpoint's, or 1."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Keeps the k likeliest tokens; 0 and -1 keep all. The default is the checkpoint's, or 0."""
    metadata: Metadata | None = None
    """Tells about the request."""
    service_tier: Literal["auto", "standard_only"] | None = None
    """Changes nothing: this server has one tier."""

    def conversation(self) -> dict[str, Any]:
        return super().conversation() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "user": None if self.metadata is None else self.metadata.user_id,
            "metadata": None if self.metadata is None else declared(self.metadata),
        }


def _turns(message: Message) -> Iterator[dict[str, Any]]:
    """Yields the chat's messages for one message here: results among a user's blocks become messages of their own."""
    texts = [block for block in message.content if block.type == "text"]
    if message.role != "user":
        calls = [_call(block) for block in message.content if block.type == "tool_use"]
        content = _text(texts) if texts or not calls else None
        thought = "\n\n".join(block.thinking for block in message.content if block.thinking)
        more = {"tool_calls": calls, "reasoning_content": thought}
        yield {"role": message.role, "content": content} | {key: value for key, value in more.items() if value}
        return
    for block in message.content:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or ())}
    if texts or not message.content:
        yield {"role": "user", "content": _text(texts)}


def _call(block: Block) -> dict[str, Any]:
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _text(blocks: Sequence[TextBlock | Block]) -> str:
    return "".join(block.text or "" for block in blocks)
