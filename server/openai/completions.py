"""Serves /v1/completions: text that continues prompts, which are text or token ids."""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from octavo.engine.api import Ready
from octavo.server.generation.admission import Task, admit, check_before_encoding, check_token_ids, parsed, read_prompt
from octavo.server.generation.respond import respond
from octavo.server.generation.sampling import encodable, kept, output_limit, sampling_params, truncated
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.operations import GENERATING, Operation
from octavo.server.openai.completions_answer import Completion, CompletionWriter
from octavo.server.openai.completions_request import CompletionRequest
from octavo.server.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's default
SEPARATOR = "<|endoftext|>"  # OpenAI's default prompt; GPT-2's vocabulary has it, and those that came of it
EXAMPLE = {"prompt": "An octavo is a book", "max_tokens": 32}
COMPLETION = Operation("Generation", Completion, CompletionRequest, Completion, GENERATING, EXAMPLE)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", openapi_extra=COMPLETION.extra())
    async def create_completion(http: HttpRequest) -> Response:
        """Continues a prompt with text."""
        request, tasks = await read_prompt(service, http, _prepared)
        job = await admit(service, http, request, tasks, "cmpl-")
        return await respond(http, job, CompletionWriter(job, request, service.tokenizer), request.stream is True)

    return routes


def _prepared(texts: Texts, body: bytes, ready: Ready) -> tuple[CompletionRequest, list[Task]]:
    """Returns the request without its prompts, and a task for each of them."""
    request = parsed(texts, body, CompletionRequest)
    prompts = request.prompts()
    check_before_encoding(texts, ready, len(prompts), request)
    if not prompts:
        raise _empty(prompts)
    # Each is checked before the next one is encoded: the first that is too long refuses the request.
    tasks = [_task(texts.tokenizer, request, prompt, ready) for prompt in prompts]
    return request.model_copy(update={"prompt": ""}), tasks


def _empty(prompt: object) -> InvalidRequest:
    return InvalidRequest("{param} must not be empty.", "prompt", "empty_array" if isinstance(prompt, list) else None)


def _encoded(
    tokenizer: Tokenizer, prompt: str | list[int] | None, request: CompletionRequest, ready: Ready
) -> tuple[int, ...]:
    if prompt is None:
        return _beginning(tokenizer, ready)
    if isinstance(prompt, str):
        keep = kept(request, _wanted(request), ready.max_model_len)
        text = encodable(tokenizer, prompt, keep, ready.max_model_len, "prompt")
        return tokenizer.encode(text, add_special_tokens=request.add_special_tokens is not False)
    check_token_ids(tokenizer, prompt, "prompt")
    return tuple(prompt)


def _beginning(tokenizer: Tokenizer, ready: Ready) -> tuple[int, ...]:
    """Returns what begins a document: a BOS or, in vocabularies without, what separates documents in training."""
    separators = (*tokenizer.added_ids([SEPARATOR]).values(), *ready.eos_token_ids)
    return tokenizer.encode("", add_special_tokens=True) or separators[:1]


def _task(tokenizer: Tokenizer, request: CompletionRequest, prompt: str | list[int] | None, ready: Ready) -> Task:
    """Raises InvalidRequest."""
    encoded, wanted = _encoded(tokenizer, prompt, request, ready), _wanted(request)
    if not encoded:
        raise _empty(prompt)
    ids = truncated(encoded, request, wanted, ready.max_model_len)
    limit = output_limit(len(ids), request.max_tokens, ready.max_model_len, "prompt")
    params = sampling_params(request, ready, min(limit, wanted), request.logprobs)
    params = replace(params, logprobs=_logprobs(request), prompt_logprobs=_prompt_logprobs(request))
    as_sent = prompt if isinstance(prompt, str) and ids == encoded else None
    return Task(ids, params, echo=_text(tokenizer, ids, as_sent) if request.echo else None)


def _text(tokenizer: Tokenizer, ids: Sequence[int], as_sent: str | None) -> str:
    """Returns the text to echo: the prompt as it was sent, or decoded if it was not sent as text or was cut.

    Special tokens are part of the text, as they are of the tokens in its log-probabilities.
    """
    return tokenizer.backend.decode(list(ids), skip_special_tokens=False) if as_sent is None else as_sent


def _wanted(request: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _logprobs(request: CompletionRequest) -> int | None:
    """Returns the number that the request asks for; 0 if only the choice among candidates needs them."""
    return 0 if request.logprobs is None and request.candidates()[0] > (request.n or 1) else request.logprobs


def _prompt_logprobs(request: CompletionRequest) -> int | None:
    """Returns the number that the echo or vLLM's prompt_logprobs needs, whichever is larger."""
    wanted = (request.prompt_logprobs, request.logprobs if request.echo else None)
    return max((count for count in wanted if count is not None), default=None)
