"""Defines the fields that all requests for text share, strict about types and bounds; null means absent."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from octavo.server.generation.experts import ExpertFields
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.structured import Structured
from octavo.server.http.errors import FieldName, InvalidRequest, from_validation
from octavo.server.http.fields import Object, refused_as
from octavo.server.http.reading import check_utf8, parsed_json

MAX_STOPS = 128  # OpenAI allows 4; llama.cpp, vLLM and Anthropic set no limit, and clients send dozens
MAX_STOP_LENGTH = 1024  # characters; so many may be held back, and compared for each new one
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20  # as in OpenAI's chat and in other servers; OpenAI's completions allow 5
MAX_STRINGS = 100_000  # in a body, names of fields included; twenty for each of 4,096 messages, and some tools
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
    """Asks for a last chunk, without choices, that tells the usage."""
    continuous_usage_stats: bool | None = None
    """Asks for the usage so far in every chunk, unless `include_usage` is false. This is an extension."""
    include_obfuscation: bool | None = None
    """Changes nothing, since there is no padding to leave out."""


class ModelRequest(Object):
    """Holds what every body has in common."""

    model: str | None = None
    """Names a served model, as /v1/models lists it. The default is the model that is served."""

    def check(self) -> None:
        """Checks what concerns more than one field. Raises InvalidRequest."""

    def unknown(self) -> Mapping[str, Any]:
        """Returns the fields of the body that this class does not have."""
        return self.model_extra or {}


class GenerationRequest(ModelRequest, Structured, ExpertFields):
    """Holds what completions and chat have in common."""

    model: str
    """Names a served model, as /v1/models lists it."""
    max_tokens: int | None = Field(None, ge=1)
    """Limits the tokens of a choice. The default is 16 for completions, and the rest of the context for chat."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Makes the choice of tokens more varied; 0 always takes the likeliest. The default is the checkpoint's, or 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Keeps the likeliest tokens whose probabilities add up to this. The default is the checkpoint's, or 1."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Keeps the k likeliest tokens; 0 and -1 keep all. The default is the checkpoint's, or 0. This is an extension."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Keeps tokens that are at least this likely, as a share of the likeliest one's probability.

    The default is the checkpoint's, or 0. This is an extension.
    """
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    """Makes the same request give the same tokens again, on a GPU only if it serves with --batch-invariant.

    The default, and -1, is a random seed.
    """
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Is subtracted from the logit of each token that the choice already has. The default is 0."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Is subtracted from the logit of a token once for each time that the choice has it. The default is 0."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    """Makes the tokens of prompt and choice less likely if it is above 1, and likelier if it is below 1.

    The default is the checkpoint's, or 1. This is an extension.
    """
    logit_bias: LogitBias | None = None
    """Maps token ids, as strings, to what is added to their logits, from -100 (a ban) to 100 (a must)."""
    stop: Stop | None = None
    """Gives up to 128 strings that end a choice where they appear; they are not part of its text. OpenAI allows 4.

    The text of a special token, such as `<|im_end|>`, ends a choice, too.
    """
    stop_token_ids: StopIds | None = None
    """Gives tokens that end a choice, beside the checkpoint's own. This is an extension."""
    include_stop_str_in_output: bool | None = None
    """Makes what ended a choice part of its text. The default is false. This is an extension."""
    min_tokens: int | None = Field(None, ge=0)
    """Keeps a choice from ending before it has so many tokens, at most max_tokens.

    The default is 0. This is an extension.
    """
    ignore_eos: bool | None = None
    """Lets a choice go on after the checkpoint's own end tokens. The default is false. This is an extension."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Keeps only the last so many tokens of a prompt; -1 keeps as many as leave room for max_tokens.

    This is an extension.
    """
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Asks for the log-probabilities of each token of the prompt and of so many of the likeliest tokens in its place.

    It is not allowed in streams. This is an extension.
    """
    n: int | None = Field(None, ge=1)
    """Asks for so many choices for each prompt, at most 128. The default is 1."""
    stream: bool | None = None
    """Asks for the answer as server-sent events, while it is made."""
    stream_options: StreamOptions | None = None
    """Says what a stream contains; it is only allowed with `stream: true`."""
    user: str | None = None
    """Tells whom the request is for. It changes nothing."""
    cache_salt: str | None = None
    """Keeps cached prefixes apart: only requests with the same salt share them. This is an extension."""
    metadata: dict[str, Any] | None = None
    """Gives notes on the request. `topic` is the label under which /v1/experts counts it; the others change nothing."""

    def stops(self) -> tuple[str, ...]:
        """Returns the stop strings; an empty string stops nothing."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    def biases(self) -> tuple[tuple[int, float], ...]:
        """Returns (token id, bias) pairs. If an id is written twice ("7" and "07"), the last one counts."""
        return tuple({int(token): bias for token, bias in (self.logit_bias or {}).items()}.items())

    def check(self) -> None:
        super().check()
        self.constraint()
        if self.stream_options is not None and self.stream_options.model_fields_set and not self.stream:
            raise InvalidRequest(
                "{param} is only allowed with {stream}: true.", "stream_options", stream=FieldName("stream")
            )
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("{param} should be -1 or at least 1.", "truncate_prompt_tokens")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("{param} cannot be streamed; leave one of them out.", "prompt_logprobs")

    def candidates(self) -> tuple[int, str]:
        """Returns how many choices are made for each prompt, and the name of the field that says so."""
        return self.n or 1, "n"

    @property
    def counts_usage(self) -> bool:
        """Returns whether every chunk tells the usage so far. None does where the client wants no usage, as in vLLM."""
        options = self.stream_options or StreamOptions()
        return options.continuous_usage_stats is True and options.include_usage is not False

    @property
    def includes_usage(self) -> bool:
        """Returns whether a last chunk tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True


def parse(model: type[RequestT], body: bytes, check_extra: ParameterCheck) -> RequestT:
    """Parses and checks a body. Raises InvalidRequest, which names the field at fault."""
    check_utf8(body)
    _check_size(body)
    return checked(lambda: parsed_json(model.model_validate_json, body), check_extra)


def _check_size(body: bytes) -> None:
    """Raises InvalidRequest for more strings than a request needs: each of them, and what is around it, takes time."""
    quotes = body.replace(rb"\\", b"")
    strings = (quotes.count(b'"') - quotes.count(rb"\"")) // 2
    if strings > MAX_STRINGS:
        raise InvalidRequest(
            f"The body has {strings:,} strings, and at most {MAX_STRINGS:,} are read; send less at once."
        )


def checked(validate: Callable[[], RequestT], check_extra: ParameterCheck) -> RequestT:
    """Returns what `validate` returns, after checking it as a whole. Raises InvalidRequest."""
    try:
        request = validate()
    except ValidationError as error:
        raise from_validation(error) from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    check_extra(request.unknown())
    request.check()
    return request
