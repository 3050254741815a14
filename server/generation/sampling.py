"""Turns a request into SamplingParams, with the checkpoint's recommendations where the request is silent."""

import secrets
from typing import TypeVar

from octavo.engine.api import Ready, SamplingParams
from octavo.server.generation.experts import topic_of
from octavo.server.generation.request import GenerationRequest
from octavo.server.http.errors import ContextLengthExceeded, InvalidRequest
from octavo.server.text.length import ending, exceeds
from octavo.server.text.tokenizer import Tokenizer

_UINT64 = 2**64 - 1
_RANDOM = -1  # llama.cpp, vLLM and their frontends ask for a random seed by this one
T = TypeVar("T")


def sampling_params(request: GenerationRequest, ready: Ready, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """Returns the parameters of the first choice; the others differ in `choice`.

    Raises InvalidRequest when min_tokens cannot be reached.
    """
    defaults = ready.defaults
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            "{param} should be at most the {most} tokens of max_tokens.", "min_tokens", most=max_tokens
        )
    eos = () if request.ignore_eos else ready.eos_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_k=max(_first(request.top_k, defaults.top_k, 0), 0),  # -1 keeps every token, as 0 does
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        grammar=None if (constraint := request.constraint()) is None else constraint.grammar,
        seed=_seed(request.seed),
        logprobs=logprobs,
        prompt_logprobs=request.prompt_logprobs,
        stop_token_ids=tuple(dict.fromkeys((*eos, *(request.stop_token_ids or ())))),
        min_tokens=min_tokens,
        logit_bias=request.biases(),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        routes_from=request.routes_from,
        topic=topic_of(request.metadata),
        experts=request.expert_control(),
    )


def _seed(wanted: int | None) -> int:
    return secrets.randbits(64) if wanted in (None, _RANDOM) else wanted & _UINT64


def _first(wanted: T | None, recommended: T | None, otherwise: T) -> T:
    if wanted is not None:
        return wanted
    return otherwise if recommended is None else recommended


def truncated(
    prompt: tuple[int, ...], request: GenerationRequest, wanted: int | None, max_model_len: int
) -> tuple[int, ...]:
    """Returns the last tokens of the prompt, as many as the request keeps."""
    keep = kept(request, wanted, max_model_len)
    return prompt if keep is None else prompt[-keep:]


def kept(request: GenerationRequest, wanted: int | None, max_model_len: int) -> int | None:
    """Returns how many tokens of a prompt are kept; None: all. A wish for -1 leaves room for `wanted` tokens or one."""
    keep = request.truncate_prompt_tokens
    if keep is None or keep >= 0:
        return keep
    return max(max_model_len - (1 if wanted is None else wanted), 1)


def encodable(tokenizer: Tokenizer, text: str, keep: int | None, max_model_len: int, field: str) -> str:
    """Returns as much of a prompt's text as has to be encoded: all of it, or an end that holds the tokens to keep.

    Raises ContextLengthExceeded for a text that is far too long, which would take long to encode.
    """
    if keep is not None:
        return ending(tokenizer, text, min(keep, max_model_len + 1))
    if exceeds(tokenizer, text, max_model_len):
        raise too_long(max_model_len, field)
    return text


def too_long(max_model_len: int, field: str) -> ContextLengthExceeded:
    """Returns the error for a prompt that was not encoded, since it surely has more tokens than the context."""
    return ContextLengthExceeded(
        "This model's maximum context length is {limit} tokens. However, the {source} alone has more. "
        "Please reduce its length.",
        field,
        limit=max_model_len,
        source=field,
    )


def output_limit(prompt_tokens: int, wanted: int | None, max_model_len: int, field: str) -> int:
    """Returns how many tokens may be generated: `wanted`, or the rest of the context if that is None.

    Raises ContextLengthExceeded when they do not fit; `field` is the field of the prompt.
    """
    room = max_model_len - prompt_tokens
    completion = 1 if wanted is None else wanted
    if completion > room:
        raise ContextLengthExceeded(
            "This model's maximum context length is {limit} tokens. However, you requested {total} tokens "
            "({prompt} in the {source}, {completion} in the completion). "
            "Please reduce the length of the {source} or completion.",
            field,
            limit=max_model_len,
            total=prompt_tokens + completion,
            prompt=prompt_tokens,
            completion=completion,
            source=field,
        )
    return room if wanted is None else wanted
