"""From a chat request to an admitted job: what every endpoint does that answers conversations."""

import asyncio

from starlette.requests import Request as HttpRequest

from engine.api import Ready
from server.admission import Task, admit, check_count
from server.errors import InvalidRequest
from server.health import require_ready
from server.job import Job
from server.parts import PartReaders
from server.protocol import ChatRequest
from server.sampling import output_limit, sampling_params
from server.service import Service
from server.text import Tokenizer


async def begin(service: Service, http: HttpRequest, request: ChatRequest, prefix: str) -> tuple[Job, PartReaders]:
    """The job, whose id starts with `prefix`, and what reads its answer. Raises ApiError, and nothing is queued."""
    ready = require_ready(service.client)
    check_count(service, ready, 1, request)
    task = await asyncio.to_thread(_task, service.tokenizer, request, ready)
    return admit(service, http, request, [task], prefix), PartReaders()


def rendered(tokenizer: Tokenizer, request: ChatRequest) -> str:
    """The prompt as text: what the model is given."""
    if tokenizer.template is None:
        message = "The model has no chat template; use /v1/completions, or add chat_template.jinja to the checkpoint."
        raise InvalidRequest(message, "messages")
    return tokenizer.template.render([message.turn() for message in request.messages])


def _task(tokenizer: Tokenizer, request: ChatRequest, ready: Ready) -> Task:
    """Runs in a thread: rendering and encoding a long conversation take longer than the event loop may wait."""
    prompt = tokenizer.encode(rendered(tokenizer, request), add_special_tokens=False)  # the template brings its BOS
    if not prompt:
        raise InvalidRequest("'messages' render to an empty prompt.", "messages")
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    limit = output_limit(len(prompt), wanted, ready.max_model_len, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return Task(prompt, sampling_params(request, ready, limit, logprobs))
