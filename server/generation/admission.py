"""Turns a body into an admitted job, as every endpoint that generates does before the first token."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from octavo.engine.api import Ready, Request, SamplingParams
from octavo.engine.client import BadGrammar, Generation, Refused
from octavo.server.generation.choices import Choice, Display
from octavo.server.generation.experts import check_experts
from octavo.server.generation.intake import discard
from octavo.server.generation.job import Job
from octavo.server.generation.preparer import Prepare
from octavo.server.generation.refusals import as_api_error
from octavo.server.generation.request import GenerationRequest, RequestT, parse
from octavo.server.generation.salt import prefix_salt
from octavo.server.generation.service import Service
from octavo.server.generation.structured import Constraint
from octavo.server.generation.texts import Texts
from octavo.server.http.auth import caller_of
from octavo.server.http.errors import ApiError, InvalidRequest, ServiceUnavailable, TooManyRequests
from octavo.server.http.health import require_ready
from octavo.server.http.reading import check_content_type
from octavo.server.http.streaming import until_disconnect
from octavo.server.http.trace import Trace
from octavo.server.text.tokenizer import Tokenizer

TOO_MANY = "integer_above_max_value"  # OpenAI's code

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """A Task is one prompt of a request, with how its choices are sampled and shown."""

    prompt: tuple[int, ...]
    params: SamplingParams
    shown: frozenset[int] = frozenset()  # special tokens whose text is part of the answer
    constraints: tuple[Constraint, ...] = ()  # grammars to try before submitting, beside the request's own
    echo: str | None = None  # the prompt's text, if each choice begins with it; None: it does not


async def read(service: Service, http: HttpRequest, prepare: Prepare[T], *arguments: object) -> T:
    """Receives a body and returns prepare(texts, body, *arguments), which runs off the event loop.

    `prepare` is a function of a module, since a large body is read by another process. Its result must not hold what is
    large and no longer needed. Raises ApiError, or ClientLeft as soon as the client is gone.
    """
    check_content_type(http.headers.get("content-type", ""))
    async with service.intake.received(http) as body:
        work = service.preparer.run(_caller_or_address(http), prepare, body, *arguments)
        del body
        try:
            return await until_disconnect(work, http.receive)
        except ApiError as error:
            error.__context__ = None  # The frames behind an error would hold the body until garbage is collected.
            raise error.with_traceback(None) from None


def _caller_or_address(http: HttpRequest) -> str:
    """Returns what tells callers apart: the name of the key or, where there are none, the address."""
    return caller_of(http.scope) or (http.client.host if http.client is not None else "")


async def read_prompt(service: Service, http: HttpRequest, prepare: Prepare[T]) -> T:
    """Returns prepare(texts, body, ready), as `read` does, unless the engine could take no request anyway."""
    try:
        ready = require_ready(service.client)
        place = service.places.take()
    except (TooManyRequests, ServiceUnavailable):
        await discard(http)
        raise
    with place:
        return await read(service, http, prepare, ready)


def parsed(texts: Texts, body: bytes, model: type[RequestT]) -> RequestT:
    """Parses and checks the body of a request for a model that is served here. Raises ApiError."""
    request = parse(model, body, texts.check_extra)
    if request.model is not None:
        texts.require_model(request.model)
    return request


def check_token_ids(tokenizer: Tokenizer, ids: Sequence[int], field: str) -> None:
    """Raises InvalidRequest if an id is not one of the tokenizer's."""
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise InvalidRequest("{param} has token ids outside 0 to {last}.", field, last=tokenizer.vocab_size - 1)


def check_before_encoding(texts: Texts, ready: Ready, prompts: int, request: GenerationRequest) -> None:
    """Raises InvalidRequest for what could never run, before any prompt is encoded."""
    check_token_ids(texts.tokenizer, [token for token, _ in request.biases()], "logit_bias")
    check_token_ids(texts.tokenizer, request.stop_token_ids or (), "stop_token_ids")
    check_experts(request, ready.experts, texts.config.allow_expert_control)
    _check_number_of_choices(texts, ready, prompts, request)


def _check_number_of_choices(texts: Texts, ready: Ready, prompts: int, request: GenerationRequest) -> None:
    count, field = request.candidates()
    if count > texts.config.max_num_choices:
        limit = texts.config.max_num_choices
        raise InvalidRequest("{param} should be less than or equal to {limit}.", field, TOO_MANY, limit=limit)
    most = ready.max_num_seqs + ready.max_waiting
    if prompts * count > most:
        template = "{wanted} choices are too many at once; this server takes {most}."
        raise InvalidRequest(template, field, TOO_MANY, wanted=prompts * count, most=most)


async def admit(
    service: Service, http: HttpRequest, request: GenerationRequest, tasks: Sequence[Task], prefix: str
) -> Job:
    """Submits each prompt n times, all of them together. Raises ApiError, and then nothing is queued."""
    _check_routes(tasks)
    caller = _caller_or_address(http)
    await _check_grammars(service, request, tasks, caller)
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
            topic = service.experts.label(task.params.topic)
            params = replace(task.params, choice=choice, prompt_logprobs=scored, topic=topic)
            choices.append(
                Choice(index, Request(f"{id}-{index}", task.prompt, params, salt, caller), service.tokenizer, display)
            )
    trace = Trace.of(http.scope)
    trace.admit(id, request.model)
    generation = _submit(service, [choice.request for choice in choices])
    return Job(id, choices, count, generation, service, trace)


def _check_routes(tasks: Sequence[Task]) -> None:
    """Raises InvalidRequest if the experts are asked for from a position on that is beyond a prompt."""
    for task in tasks:
        if (task.params.routes_from or 0) > len(task.prompt):
            template = "{param} should be at most the {length} tokens of the prompt."
            raise InvalidRequest(template, "routed_experts_start_len", TOO_MANY, length=len(task.prompt))


async def _check_grammars(service: Service, request: GenerationRequest, tasks: Sequence[Task], caller: str) -> None:
    asked = request.constraint()
    for constraint in (*([] if asked is None else [asked]), *(each for task in tasks for each in task.constraints)):
        try:
            await service.client.check(constraint.grammar, caller)
        except BadGrammar as bad:
            raise InvalidRequest("{param}: {reason}", constraint.field, reason=bad) from bad
        except Refused as refused:
            raise as_api_error(refused) from refused


def _submit(service: Service, requests: Sequence[Request]) -> Generation:
    try:
        return service.client.submit(requests)
    except Refused as refused:
        raise as_api_error(refused) from refused
