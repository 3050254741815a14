"""ChatRequest: the body of a chat, and what each API for conversations amounts to."""

from typing import Any

from pydantic import Field

from octavo.server.conversation.messages import Message
from octavo.server.conversation.tools import MAX_TOOLS, Tool, ToolChoice, ToolUse, check_tools, tool_use
from octavo.server.generation.request import MAX_LOGPROBS, GenerationRequest
from octavo.server.http.errors import FieldName, InvalidRequest


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    """The conversation so far, oldest first."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens, and the stronger."""
    logprobs: bool | None = None
    """Whether to tell the log-probability of each token, before bias, penalties, temperature and filters."""
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """How many of the likeliest tokens to tell too; only with `logprobs`."""
    add_generation_prompt: bool | None = None
    """Extension. Whether the assistant speaks next. Default: true, unless the final message is continued."""
    continue_final_message: bool | None = None
    """Extension. Whether the last message, the assistant's, is the beginning of the answer. Default: false."""
    chat_template: str | None = None
    """Extension. A Jinja template in place of the checkpoint's, where the server is started to allow it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Extension. Further variables of the template."""
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    """Functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether it calls any: `auto`, the default with tools, leaves it to the model; others demand or forbid it."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may have several calls. Default: true."""

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
        """What the model may do with tools; None when it has none to call."""
        return tool_use(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False)

    def _check_prefill(self) -> None:
        if self.add_generation_prompt:
            template, other = "{param} and {other} cannot both be true.", FieldName("add_generation_prompt")
            raise InvalidRequest(template, "continue_final_message", other=other)
        final = self.messages[-1]
        if final.role != "assistant" or final.tool_calls:
            template = "{param} needs a last message of the role 'assistant', without tool calls."
            raise InvalidRequest(template, "continue_final_message")
