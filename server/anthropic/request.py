"""What clients send to /v1/messages, and the chat request that it amounts to."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo.server.conversation.translation import TranslatedRequest, declared
from octavo.server.http.errors import FieldName, InvalidRequest
from octavo.server.http.fields import Object

# The chat's complaints, in this body's words.
NAMES = {
    "messages": "messages",
    "continue_final_message": "messages",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "user": "metadata.user_id",
}
UNSUPPORTED = ("container", "context_management", "mcp_servers")  # what runs on Anthropic's side
REQUIRED = {"text": ("text",), "tool_use": ("id", "name", "input"), "tool_result": ("tool_use_id",)}
BELONGS = {"tool_use": "assistant", "tool_result": "user"}  # the one role that has such blocks


class TextBlock(Object):
    type: Literal["text"]
    """Text; other blocks this model does not read."""
    text: str
    """The text itself."""


def _as_blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


class Block(Object):
    """Text, a call that the model made, or what came of it; `check` says what each of them needs."""

    type: Literal["text", "tool_use", "tool_result"]
    """Which of them it is."""
    text: str | None = None
    """Of text: the text itself."""
    id: str | None = None
    """Of a call: what its result refers to."""
    name: str | None = None
    """Of a call: the tool's name."""
    input: dict[str, Any] | None = None
    """Of a call: the arguments."""
    tool_use_id: str | None = None
    """Of a result: the call's id."""
    content: Texts | None = None
    """Of a result: what the tool returned, a string or text blocks."""
    is_error: bool | None = None
    """Of a result: whether the tool failed; its content says how."""

    def check(self, role: str, where: str) -> None:
        """Raises InvalidRequest for what is missing or does not belong to the role."""
        if BELONGS.get(self.type, role) != role:
            template = "{type} is '{given}', which the role '{role}' does not have."
            raise InvalidRequest(template, where, type=FieldName(f"{where}.type"), given=self.type, role=role)
        given = declared(self)
        for name in REQUIRED[self.type]:
            if name not in given:
                raise InvalidRequest("The required parameter {param} is missing.", f"{where}.{name}")


Blocks = Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])]


class Message(Object):
    role: Literal["user", "assistant", "system"]
    """Who says it."""
    content: Blocks
    """What is said: a string, or blocks."""


class Tool(Object):
    type: Literal["custom"] | None = None
    """A tool of the client's own; there are no built-in ones."""
    name: str
    """What the model calls it."""
    input_schema: dict[str, Any]
    """A JSON schema of its input."""
    description: str | None = None
    """When and how to use it, for the model."""
    strict: bool | None = None
    """Whether the input must validate against the schema."""

    def chat(self) -> dict[str, Any]:
        rest = {key: value for key, value in declared(self).items() if key not in ("type", "input_schema")}
        return {"type": "function", "function": {**rest, "parameters": self.input_schema}}


class ToolChoice(Object):
    type: Literal["auto", "any", "tool", "none"]
    """The model's choice, some tool, the named tool, or none."""
    name: str | None = None
    """Of `tool`: which."""
    disable_parallel_tool_use: bool | None = None
    """Whether there may be only one call in an answer. Default: false."""

    def chat(self) -> Any:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"any": "required"}.get(self.type, self.type)


class Format(Object):
    type: Literal["json_schema"]
    """JSON that validates against a schema."""
    schema_: dict[str, Any] = Field(alias="schema")
    """The JSON schema."""

    def chat(self) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema_, "strict": True}}


class OutputConfig(Object):
    format: Format | None = None
    """What the answer's text must be. Default: any text."""
    effort: str | None = None
    """Refused: this model has no degrees of effort."""


class Thinking(Object):
    type: Literal["disabled"]
    """This model does not think aside."""


class Metadata(Object):
    user_id: str | None = None
    """Whom the request is for; informational."""


class CountRequest(TranslatedRequest):
    """A conversation, with all that makes its prompt."""

    messages: list[Message] = Field(min_length=1)
    """The conversation so far, oldest first. If the last message is the assistant's, the answer continues it."""
    system: Texts | None = None
    """A system message before the conversation: a string, or text blocks."""
    tools: list[Tool] | None = None
    """Tools that the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether it must, or which. Default: its choice."""
    thinking: Thinking | None = None
    """Accepted where it is disabled."""
    output_config: OutputConfig | None = None
    """What the answer must be."""

    def check(self) -> None:
        super().check()
        for name in UNSUPPORTED:
            if (self.model_extra or {}).get(name):
                raise InvalidRequest("{param} is not supported by this server; leave it out.", name)
        if self.tool_choice is not None and self.tool_choice.type == "tool" and self.tool_choice.name is None:
            raise InvalidRequest("The required parameter {param} is missing.", "tool_choice.name")
        for position, message in enumerate(self.messages):
            for index, block in enumerate(message.content):
                block.check(message.role, f"messages.{position}.content.{index}")

    def chat(self) -> dict[str, Any]:
        """The body of the chat request."""
        return self.amounting_to(self.conversation())

    def conversation(self) -> dict[str, Any]:
        """What of it is translated; null where the body says nothing."""
        config, choice = self.output_config or OutputConfig(), self.tool_choice
        continues = self.messages[-1].role == "assistant"
        return {
            "messages": [*self._system(), *(turn for message in self.messages for turn in _turns(message))],
            "add_generation_prompt": False if continues else None,
            "continue_final_message": True if continues else None,
            "tools": None if self.tools is None else [tool.chat() for tool in self.tools],
            "tool_choice": None if choice is None else choice.chat(),
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "response_format": None if config.format is None else config.format.chat(),
            "reasoning_effort": config.effort,
        }

    def _system(self) -> Iterator[dict[str, Any]]:
        if self.system:
            yield {"role": "system", "content": _text(self.system)}


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    """The most tokens the answer may have."""
    stop_sequences: list[str] | None = None
    """Up to four strings that end the answer where they appear; they are not part of its text."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; more is more varied. Default: the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens that add up to this share. Default: the checkpoint's, or 1."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Keeps the k likeliest tokens; 0 and -1 keep all, the default."""
    metadata: Metadata | None = None
    """About the request; informational."""
    service_tier: Literal["auto", "standard_only"] | None = None
    """Accepted: there is one tier."""

    def conversation(self) -> dict[str, Any]:
        return super().conversation() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "user": None if self.metadata is None else self.metadata.user_id,
        }


def _turns(message: Message) -> Iterator[dict[str, Any]]:
    """One of the assistant's stays one message; results among the user's blocks are messages of their own."""
    texts = [block for block in message.content if block.type == "text"]
    if message.role != "user":
        calls = [_call(block) for block in message.content if block.type == "tool_use"]
        content = _text(texts) if texts or not calls else None
        yield {"role": message.role, "content": content} | ({"tool_calls": calls} if calls else {})
        return
    for block in message.content:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or ())}
    if texts or not message.content:
        yield {"role": "user", "content": _text(texts)}


def _call(block: Block) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _text(blocks: Sequence[TextBlock | Block]) -> str:
    return "".join(block.text or "" for block in blocks)
