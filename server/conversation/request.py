"""Describes the body of a chat request, which every other API for conversations is translated into."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from octavo.server.conversation.messages import MAX_MESSAGES, Message
from octavo.server.conversation.tools import MAX_TOOLS, Tool, ToolChoice, ToolUse, check_tools, tool_use
from octavo.server.generation.request import MAX_LOGPROBS, GenerationRequest
from octavo.server.http.errors import FieldName, InvalidRequest
from octavo.server.http.fields import Object


class Thinking(Object):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    """Asks the model to reason (enabled), not to reason (disabled), or leaves that to it."""
    budget_tokens: int | None = None
    """Changes nothing: reasoning counts towards the limit of the answer."""


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """Holds the conversation so far, oldest first."""
    cuts_max_tokens: ClassVar[bool] = False  # a limit that does not fit in the context is cut, not refused
    max_completion_tokens: int | None = Field(None, ge=1)
    """Replaces max_tokens; if both are given, this one counts."""
    logprobs: bool | None = None
    """Asks for the log-probability of each token, before bias, penalties, temperature and filters."""
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Asks for so many of the likeliest tokens in each place, too. It is only allowed with `logprobs`."""
    add_generation_prompt: bool | None = None
    """Lets the assistant speak next. The default is true, unless the last message is continued.

    This is an extension.
    """
    continue_final_message: bool | None = None
    """Makes the last message, the assistant's, the beginning of the answer. The default is false.

    Calls in it are written as text. This is an extension.
    """
    add_special_tokens: bool | None = None
    """Adds the tokens that begin a text, usually a BOS, unless the template has written them. The default is false.

    This is an extension.
    """
    chat_template: str | None = None
    """Gives a Jinja template in place of the checkpoint's, if the server is started to allow it.

    This is an extension.
    """
    chat_template_kwargs: dict[str, Any] | None = None
    """Sets further variables of the template, such as `enable_thinking`. This is an extension."""
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    """Lists the functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """Says whether the model calls tools: `auto`, the default with tools, leaves it to the model.

    Other values demand or forbid it.
    """
    reasoning_effort: str | None = None
    """Says how long the model reasons before it answers, if its template knows degrees: none, low, medium or high.

    `none` asks it not to reason. A template that does not know this passes over it.
    """
    thinking: Thinking | None = None
    """Asks the model to reason or not to, if its template lets it choose. This is an extension."""
    parallel_tool_calls: bool | None = None
    """Allows several calls in one answer. The default is true."""

    def check(self) -> None:
        super().check()
        check_tools(self.tools or [], self.tool_choice)
        if self.continue_final_message:
            self._check_prefill()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                "{param} is only allowed with {flag}: true.", "top_logprobs", flag=FieldName("logprobs")
            )
        for position, message in enumerate(self.messages):
            message.check(position)

    def tool_use(self) -> ToolUse | None:
        """Returns what the model may do with tools, or None when it has none to call."""
        return tool_use(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False)

    def template_variables(self, efforts: Mapping[str, str]) -> dict[str, Any]:
        """Returns the variables of the template; those that the client names count before all others.

        `efforts` has, for degrees that the model does not know, those that it knows. The switch has one name in the
        templates of Qwen, and another in those of DeepSeek and Granite.
        """
        asked = self.reasoning_effort
        effort = {"reasoning_effort": efforts.get(asked, asked)} if asked else {}
        reasons = self._reasons()
        switch = {} if reasons is None else {"enable_thinking": reasons, "thinking": reasons}
        return {**effort, **switch, **(self.chat_template_kwargs or {})}

    def _reasons(self) -> bool | None:
        """Returns whether the client asks for reasoning; None if it leaves that to the model."""
        if self.thinking is not None and self.thinking.type in ("enabled", "disabled"):
            return self.thinking.type == "enabled"
        return self.reasoning_effort != "none" if self.reasoning_effort else None

    def _check_prefill(self) -> None:
        if self.add_generation_prompt:
            template, other = "{param} and {other} cannot both be true.", FieldName("add_generation_prompt")
            raise InvalidRequest(template, "continue_final_message", other=other)
        if self.messages[-1].role != "assistant":
            raise InvalidRequest("{param} needs a last message of the role 'assistant'.", "continue_final_message")
