"""Turns a body into an admitted job, as every endpoint that generates does before the first token."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from octavo.engine.api import Ready, Request, SamplingParams
from octavo.engine.client import BadGrammar, Generation, QueueFull, Refused, TooLong
from octavo.server.generation.choices import Choice, Display
from octavo.server.generation.job import Job
from octavo.server.generation.request import GenerationRequest, RequestT, parse
from octavo.server.generation.salt import prefix_salt
from octavo.server.generation.service import Service
from octavo.server.generation.structured import Constraint
from octavo.server.http.auth import caller_of
from octavo.server.http.errors import (
    ApiError,
    ContextLengthExceeded,
    InvalidRequest,
    ServiceUnavailable,
    TooManyRequests,
)
from octavo.server.http.streaming import ClientLeft
from octavo.server.http.trace import Trace
from octavo.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """A Task is one prompt of a request, with how its choices are sampled and shown."""

    prompt: tuple[int, ...]
    params: SamplingParams
    shown: frozenset[int] = frozenset()  # special tokens whose text is part of the answer
    constraints: tuple[Constraint, ...] = ()  # grammars to try before submitting, beside the request's own
    echo: str | None = None  # the prompt's text, if each choice begins with it; None: it does not


async def read_body(service: Service, http: HttpRequest, model: type[RequestT]) -> RequestT:
    """Reads and validates the body of a request for a model that is served here. Raises ApiError."""
    kind = http.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(f"The body must be JSON, sent as Content-Type: application/json, not '{kind[:100]}'.")
    try:
        body = await http.body()
    except ClientDisconnect:
        raise ClientLeft from None
    request = parse(model, body, service.check_extra)
    if request.model is not None:
        service.require_model(request.model)
    return request


def check_token_ids(tokenizer: Tokenizer, ids: Sequence[int], field: str) -> None:
    """Raises InvalidRequest if an id is not one of the tokenizer's."""
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise InvalidRequest("{param} has token ids outside 0 to {last}.", field, last=tokenizer.vocab_size - 1)


def check_before_encoding(service: Service, ready: Ready, prompts: int, request: GenerationRequest) -> None:
    """Raises InvalidRequest for what could never run, before any prompt is encoded."""
    check_token_ids(service.tokenizer, [token for token, _ in request.biases()], "logit_bias")
    check_token_ids(service.tokenizer, request.stop_token_ids or (), "stop_token_ids")
    _check_number_of_choices(service, ready, prompts, request)


def _check_number_of_choices(service: Service, ready: Ready, prompts: int, request: GenerationRequest) -> None:
    count, field = request.candidates()
    if count > service.config.max_num_choices:
        limit = service.config.max_num_choices
        raise InvalidRequest("{param} should be less than or equal to {limit}.", field, limit=limit)
    most = ready.max_num_seqs + ready.max_waiting
    if prompts * count > most:
        template = "{wanted} choices are too many at once; this server takes {most}."
        raise InvalidRequest(template, field, wanted=prompts * count, most=most)


async def admit(
    service: Service, http: HttpRequest, request: GenerationRequest, tasks: Sequence[Task], prefix: str
) -> Job:
    """Submits each prompt n times, all of them together. Raises ApiError, and then nothing is queued."""
    await _check_grammars(service, request, tasks)
    id = f"{prefix}{uuid.uuid4().hex}"
    count, _ = request.candidates()
    salt = prefix_salt("" if service.config.share_prefix_cache else caller_of(http.scope), request.cache_salt or "")
    include = request.include_stop_str_in_output is True
    choices: list[Choice] = []
    for task in tasks:
        display = Display(request.stops(), include, task.shown, task.echo)
        for choice in range(count):
            index = len(choices)
            scored = (
                task.params.prompt_logprobs if choice == 0 or task.echo is not None else None
            )  # only one choice has to tell them
            params = replace(task.params, choice=choice, prompt_logprobs=scored)
            choices.append(
                Choice(index, Request(f"{id}-{index}", task.prompt, params, salt), service.tokenizer, display)
            )
    trace = Trace.of(http.scope)
    trace.admit(id, request.model)
    generation = _submit(service, [choice.request for choice in choices])
    return Job(id, choices, count, generation, service, trace)


async def _check_grammars(service: Service, request: GenerationRequest, tasks: Sequence[Task]) -> None:
    asked = request.constraint()
    for constraint in (*([] if asked is None else [asked]), *(each for task in tasks for each in task.constraints)):
        try:
            await service.client.check(constraint.grammar)
        except BadGrammar as bad:
            raise InvalidRequest("{param}: {reason}", constraint.field, reason=bad) from bad
        except Refused as refused:
            raise _as_api_error(refused) from refused


def _submit(service: Service, requests: Sequence[Request]) -> Generation:
    try:
        return service.client.submit(requests)
    except Refused as refused:
        raise _as_api_error(refused) from refused


def _as_api_error(refused: Refused) -> ApiError:
    match refused:
        case TooLong():
            return ContextLengthExceeded(str(refused))
        case QueueFull():
            return TooManyRequests(str(refused))
        case _:
            return ServiceUnavailable(str(refused))
