"""From a body to an admitted job: what every generating endpoint does before its first token."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from engine.api import Ready, Request, SamplingParams
from engine.client import Generation, QueueFull, Refused, TooLong
from server.choices import Choice
from server.errors import ContextLengthExceeded, InvalidRequest, ServiceUnavailable, TooManyRequests
from server.job import Job
from server.protocol import GenerationRequest, RequestT, parse
from server.service import Service
from server.streaming import ClientLeft
from server.text import Tokenizer
from server.trace import Trace


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt of a request, and how its choices are sampled."""

    prompt: tuple[int, ...]
    params: SamplingParams
    shown: frozenset[int] = frozenset()  # special tokens that are part of the text


async def read(service: Service, http: HttpRequest, model: type[RequestT]) -> RequestT:
    """The body, valid, for a model that is served here."""
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


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], field: str) -> None:
    """Refuses what is no token."""
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise InvalidRequest(f"'{field}' has token ids outside 0 to {tokenizer.vocab_size - 1}.", field)


def check_count(service: Service, ready: Ready, prompts: int, request: GenerationRequest) -> None:
    """Refuses what could never run, before any of it is encoded."""
    check_ids(service.tokenizer, [token for token, _ in request.biases()], "logit_bias")
    check_ids(service.tokenizer, request.stop_token_ids or (), "stop_token_ids")
    n = request.n or 1
    if n > service.config.max_num_choices:
        raise InvalidRequest(f"'n' should be less than or equal to {service.config.max_num_choices}.", "n")
    most = ready.max_num_seqs + ready.max_waiting
    if prompts * n > most:
        raise InvalidRequest(f"{prompts * n} choices are too many at once; this server takes {most}.", "n")


def admit(service: Service, http: HttpRequest, request: GenerationRequest, tasks: Sequence[Task], prefix: str) -> Job:
    """Every prompt, n times, accepted by the engine together; or an error, and nothing is queued."""
    id = f"{prefix}{uuid.uuid4().hex}"
    n = request.n or 1
    salt = request.cache_salt or ""
    requests = [
        Request(f"{id}-{position * n + choice}", task.prompt, replace(task.params, choice=choice), salt)
        for position, task in enumerate(tasks)
        for choice in range(n)
    ]
    include = request.include_stop_str_in_output is True
    choices = [
        Choice(index, each, service.tokenizer, request.stops(), include, tasks[index // n].shown)
        for index, each in enumerate(requests)
    ]
    trace = Trace.of(http.scope)
    trace.admit(id, request.model)
    return Job(id, choices, n, _submit(service, requests), service, trace)


def _submit(service: Service, requests: Sequence[Request]) -> Generation:
    try:
        return service.client.submit(requests)
    except TooLong as refused:
        raise ContextLengthExceeded(str(refused)) from refused
    except QueueFull as refused:
        raise TooManyRequests(str(refused)) from refused
    except Refused as refused:
        raise ServiceUnavailable(str(refused)) from refused
