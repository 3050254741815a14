"""What clients send, in pydantic: OpenAI's request shapes, strict about types and bounds; null means absent."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.structured import Structured
from octavo.server.http.errors import InvalidRequest, from_validation
from octavo.server.http.fields import Object, refused_as

MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters; the search for a beginning compares up to so many, at up to so many places
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20  # OpenAI's completions stop at 5; its chat, and its peers, at 20
INT64 = 2**63

RequestT = TypeVar("RequestT", bound="ModelRequest")


TokenIds = Annotated[list[int], Field(fail_fast=True)]
_StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
Stop = Annotated[
    _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOPS)],
    refused_as(f"must be a string or an array of at most {MAX_STOPS} strings, of at most {MAX_STOP_LENGTH} characters"),
]
StopIds = Annotated[
    Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_STOP_IDS, fail_fast=True)],
    refused_as(f"must be an array of at most {MAX_STOP_IDS} token ids"),
]
LogitBias = Annotated[
    Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_BIASES),
    ],
    refused_as(f"must map at most {MAX_BIASES} token ids, as strings, to numbers from -100 to 100"),
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
