"""What clients send, in pydantic: OpenAI's request shapes, strict about types and bounds; null means absent."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, ValidationError

from octavo.server.conversation.messages import Message
from octavo.server.conversation.tools import MAX_TOOLS, Tool, ToolChoice, ToolUse, check_tools, tool_use
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.structured import Structured
from octavo.server.http.errors import InvalidRequest, from_validation
from octavo.server.http.fields import Object, shaped

MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters: every choice prepares its own search for them
MAX_BEST_OF = 20  # OpenAI's
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20  # OpenAI's completions stop at 5; its chat, and its peers, at 20
INT64 = 2**63

RequestT = TypeVar("RequestT", bound="ModelRequest")


TokenIds = Annotated[list[int], Field(fail_fast=True)]
Strings = Annotated[list[str], Field(fail_fast=True)]
Prompt = Annotated[
    str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
    shaped("must be a string, an array of token ids, or an array of strings or of arrays of token ids"),
]
_StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
Stop = Annotated[
    _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOPS)],
    shaped(f"must be a string or an array of at most {MAX_STOPS} strings, of at most {MAX_STOP_LENGTH} characters"),
]
StopIds = Annotated[
    Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_STOP_IDS, fail_fast=True)],
    shaped(f"must be an array of at most {MAX_STOP_IDS} token ids"),
]
LogitBias = Annotated[
    Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_BIASES),
    ],
    shaped(f"must map at most {MAX_BIASES} token ids, as strings, to numbers from -100 to 100"),
]


class StreamOptions(Object):
    include_usage: bool | None = None
    """Whether a last chunk, without choices, tells the usage."""
    continuous_usage_stats: bool | None = None
    """Extension. Whether every chunk tells the usage so far."""
    include_obfuscation: bool | None = None
    """Accepted: there is no padding to leave out."""


class ModelRequest(Object):
    """What every body has in common."""

    model: str | None = None
    """The name of a served model, as /v1/models lists it. Default: the one that is served."""

    def check(self) -> None:
        """What concerns more than one field. Raises InvalidRequest."""

    def unknown(self) -> Mapping[str, Any]:
        """The fields that nothing here knows."""
        return self.model_extra or {}


class GenerationRequest(ModelRequest, Structured):
    """What completions and chat have in common."""

    model: str
    """The name of a served model, as /v1/models lists it."""
    max_tokens: int | None = Field(None, ge=1)
    """The most tokens a choice may have. Default: completions 16, chat the rest of the context."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; more is more varied. Default: the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens that add up to this share. Default: the checkpoint's, or 1."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Extension. Keeps the k likeliest tokens; 0 and -1 keep all, the default."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Extension. Keeps tokens at least this likely, relative to the likeliest. Default: 0."""
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    """The same seed and request give the same tokens. Default: a random one."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Taken off the logit of each token that the choice has already. Default: 0."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """The same, once for each time that the choice has the token. Default: 0."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    """Extension. Above 1, tokens of prompt and choice become less likely. Default: the checkpoint's, or 1."""
    logit_bias: LogitBias | None = None
    """Token ids, as strings, and what is added to their logits: from -100, a ban, to 100, a must."""
    stop: Stop | None = None
    """Up to four strings that end a choice where they appear; they are not part of its text."""
    stop_token_ids: StopIds | None = None
    """Extension. Tokens that end a choice, beside the checkpoint's own."""
    include_stop_str_in_output: bool | None = None
    """Extension. Whether what ended a choice is part of its text. Default: false."""
    min_tokens: int | None = Field(None, ge=0)
    """Extension. Nothing ends a choice before it has so many tokens; at most max_tokens. Default: 0."""
    ignore_eos: bool | None = None
    """Extension. Whether to go on after the checkpoint's own end. Default: false."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Extension. Keeps the last so many tokens of a prompt; -1: as many as leave room for max_tokens."""
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Extension. Tells the log-probability of each token of the prompt and of as many likeliest; not in streams."""
    n: int | None = Field(None, ge=1)
    """How many choices to make of each prompt; at most 128. Default: 1."""
    stream: bool | None = None
    """Whether to send the answer as server-sent events, as it is made."""
    stream_options: StreamOptions | None = None
    """Only with `stream: true`."""
    user: str | None = None
    """Whom the request is for; informational."""
    cache_salt: str | None = None
    """Extension. Cached prefixes are shared only among requests with the same salt."""

    def stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    def biases(self) -> tuple[tuple[int, float], ...]:
        """By token id; of one id that is written twice ("7" and "07") the last."""
        return tuple({int(token): bias for token, bias in (self.logit_bias or {}).items()}.items())

    def check(self) -> None:
        super().check()
        self.constraint()
        if self.stream_options is not None and self.stream_options.model_fields_set and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", "stream_options")
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("'truncate_prompt_tokens' should be -1 or at least 1.", "truncate_prompt_tokens")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("'prompt_logprobs' cannot be streamed; leave one of them out.", "prompt_logprobs")

    def candidates(self) -> tuple[int, str]:
        """How many choices are made of each prompt, and the field that says so."""
        return self.n or 1, "n"

    @property
    def counts_usage(self) -> bool:
        """Whether every chunk tells the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats is True

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


class CompletionRequest(GenerationRequest):
    prompt: Prompt
    """Text or token ids; an array of either asks for an answer to each."""
    max_tokens: int | None = Field(None, ge=0)
    """The most tokens a choice may have; 0 only reads the prompt. Default: 16."""
    best_of: int | None = Field(None, ge=1, le=MAX_BEST_OF)
    """How many choices to make, of which the n likeliest, by mean log-probability, are returned. Default: n."""
    echo: bool | None = None
    """Whether the text begins with the prompt's, and the log-probabilities with its. Default: false."""
    suffix: str | None = None
    """Refused: nothing is filled in between two texts."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Tells the log-probability of each token and of as many likeliest, as the model has it: before bias, penalties,
    temperature and filters. OpenAI stops at 5."""

    def check(self) -> None:
        super().check()
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            raise InvalidRequest(f"'best_of' should be at least n, which is {n}.", "best_of")
        if best_of is not None and best_of > n and self.stream:
            raise InvalidRequest("'best_of' cannot be streamed unless it equals n: the best is known last.", "best_of")
        if self.suffix:
            message = "'suffix' needs a model with fill-in tokens, and this one has none; leave it out."
            raise InvalidRequest(message, "suffix")

    def candidates(self) -> tuple[int, str]:
        return super().candidates() if self.best_of is None else (self.best_of, "best_of")

    def prompts(self) -> list[str] | list[list[int]]:
        """One or several: an array of numbers is a single prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str] | list[list[int]], self.prompt)


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
            raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", "top_logprobs")
        for position, message in enumerate(self.messages):
            message.check(position)

    def tool_use(self) -> ToolUse | None:
        """What the model may do with tools; None when it has none to call."""
        return tool_use(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False)

    def _check_prefill(self) -> None:
        if self.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' cannot both be true."
            raise InvalidRequest(message, "continue_final_message")
        final = self.messages[-1]
        if final.role != "assistant" or final.tool_calls:
            message = "'continue_final_message' needs a last message of the role 'assistant', without tool calls."
            raise InvalidRequest(message, "continue_final_message")


class TokenizeRequest(ModelRequest):
    """A prompt, or else a conversation: then fields unknown here are those of a chat request."""

    prompt: str | None = None
    """A text; or else give messages."""
    messages: list[Any] | None = None
    """A conversation, with whatever else a chat request may have."""
    add_special_tokens: bool | None = None
    """Whether to add the tokens that begin a text. Default: with a prompt, not with messages, whose template does."""
    return_token_strs: bool | None = None
    """Whether to spell each token as the vocabulary does."""

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Either 'prompt' or 'messages' is required, and not both.", "prompt")

    def unknown(self) -> Mapping[str, Any]:
        return super().unknown() if self.messages is None else {}  # the chat request judges what it is given

    def chat(self, model: str) -> dict[str, Any]:
        """The body of the chat request whose prompt is asked for."""
        return {**super().unknown(), "model": model, "messages": self.messages}


class DetokenizeRequest(ModelRequest):
    tokens: TokenIds
    """Ids from 0 to below the vocabulary's size."""


def parse(model: type[RequestT], body: bytes, check_extra: ParameterCheck) -> RequestT:
    """Raises InvalidRequest, which names the field at fault, for whatever is wrong with the body."""
    return checked(lambda: model.model_validate_json(body), check_extra)


def checked(validate: Callable[[], RequestT], check_extra: ParameterCheck) -> RequestT:
    """What `validate` returns, if it is valid as a whole. Raises InvalidRequest."""
    try:
        request = validate()
    except ValidationError as error:
        raise from_validation(error) from None
    check_extra(request.unknown())
    request.check()
    return request
