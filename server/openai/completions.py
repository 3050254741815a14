"""/v1/completions: prompts as text or token ids; the answer as text."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, NotRequired, cast

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import FinishReason, Ready
from octavo.server.generation.admission import Task, admit, check_before_encoding, check_token_ids, read_body
from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.request import MAX_LOGPROBS, GenerationRequest, TokenIds
from octavo.server.generation.respond import ChunkWriter, respond
from octavo.server.generation.sampling import output_limit, sampling_params, truncated
from octavo.server.generation.service import Service
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.fields import refused_as
from octavo.server.http.health import require_ready
from octavo.server.http.operations import GENERATING, Operation
from octavo.server.openai.logprobs import CompletionLogprobs, PromptLogprobs, completion_logprobs, prompt_logprobs
from octavo.server.text.tokenizer import Tokenizer

MAX_BEST_OF = 20  # OpenAI's
DEFAULT_MAX_TOKENS = 16  # OpenAI's


Strings = Annotated[list[str], Field(fail_fast=True)]
Prompt = Annotated[
    str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
    refused_as("must be a string, an array of token ids, or an array of strings or of arrays of token ids"),
]


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
            raise InvalidRequest("{param} should be at least n, which is {n}.", "best_of", n=n)
        if best_of is not None and best_of > n and self.stream:
            raise InvalidRequest("{param} cannot be streamed unless it equals n: the best is known last.", "best_of")
        if self.suffix:
            raise InvalidRequest(
                "{param} needs a model with fill-in tokens, and this one has none; leave it out.", "suffix"
            )

    def candidates(self) -> tuple[int, str]:
        return super().candidates() if self.best_of is None else (self.best_of, "best_of")

    def prompts(self) -> list[str] | list[list[int]]:
        """One or several: an array of numbers is a single prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str] | list[list[int]], self.prompt)


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(TypedDict):
    """Chunks have the same shape, without usage: the specification does not let it be null here, as chat's may be."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage]


EXAMPLE = {"prompt": "An octavo is a book", "max_tokens": 32}
COMPLETION = Operation("Generation", Completion, CompletionRequest, Completion, GENERATING, EXAMPLE)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", openapi_extra=COMPLETION.extra())
    async def create_completion(http: HttpRequest) -> Response:
        """Text that continues a prompt."""
        request = await read_body(service, http, CompletionRequest)
        ready = require_ready(service.client)
        prompts = request.prompts()
        check_before_encoding(service, ready, len(prompts), request)
        tasks = await asyncio.to_thread(_tasks, service.tokenizer, request, prompts, ready)
        job = await admit(service, http, request, tasks, "cmpl-")
        return await respond(http, job, CompletionWriter(job, request, service.tokenizer), request.stream is True)

    return routes


def _tasks(
    tokenizer: Tokenizer, request: CompletionRequest, prompts: Sequence[str | list[int]], ready: Ready
) -> list[Task]:
    """Runs in a thread: encoding a long prompt takes longer than the event loop may wait."""
    encoded = [_encoded(tokenizer, prompt) for prompt in prompts]
    if not encoded or not all(encoded):
        raise InvalidRequest("{param} must not be empty.", "prompt")
    tasks = [_task(request, prompt, ready) for prompt in encoded]
    if not request.echo:
        return tasks
    texts = (_text(tokenizer, *each) for each in zip(prompts, encoded, tasks, strict=True))
    return [replace(task, echo=text) for task, text in zip(tasks, texts, strict=True)]


def _encoded(tokenizer: Tokenizer, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    check_token_ids(tokenizer, prompt, "prompt")
    return tuple(prompt)


def _text(tokenizer: Tokenizer, prompt: str | list[int], encoded: tuple[int, ...], task: Task) -> str:
    """What is echoed: the prompt as it was sent, unless it was sent as ids or cut."""
    if isinstance(prompt, str) and task.prompt == encoded:
        return prompt
    return tokenizer.backend.decode(list(task.prompt), skip_special_tokens=True)


def _task(request: CompletionRequest, prompt: tuple[int, ...], ready: Ready) -> Task:
    wanted = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    prompt = truncated(prompt, request, wanted, ready.max_model_len)
    limit = output_limit(len(prompt), request.max_tokens, ready.max_model_len, "prompt")
    params = sampling_params(request, ready, min(limit, wanted), request.logprobs)
    return Task(prompt, replace(params, logprobs=_logprobs(request), prompt_logprobs=_prompt_logprobs(request)))


def _logprobs(request: CompletionRequest) -> int | None:
    """Those of the request; the choice among candidates needs the tokens' own."""
    return 0 if request.logprobs is None and request.candidates()[0] > (request.n or 1) else request.logprobs


def _prompt_logprobs(request: CompletionRequest) -> int | None:
    """As many as the echo or vLLM's form of them need."""
    wanted = (request.prompt_logprobs, request.logprobs if request.echo else None)
    return max((count for count in wanted if count is not None), default=None)


class CompletionWriter(ChunkWriter):
    """Implements respond.AnswerWriter."""

    def __init__(self, job: Job, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._job = job
        self._request = request
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}  # choice index -> characters of the tokens reported so far

    def chunks(self, delta: Delta) -> list[Completion]:
        chunk = self._completion([self._choice(delta)])
        if self._request.counts_usage:
            chunk["usage"] = self._job.usage()
        return [chunk]

    def usage_chunk(self, usage: Usage) -> Completion | None:
        return {**self._completion([]), "usage": usage} if self._request.includes_usage else None

    def whole(self, choices: Sequence[Delta], usage: Usage) -> Completion:
        answers = [self._choice(choice) for choice in self._best(choices)]
        if (count := self._request.prompt_logprobs) is not None:
            n = self._request.n or 1
            for position, answer in enumerate(answers):
                first = self._job.choices[position // n * self._job.n]  # of its prompt
                entries = first.prompt_logprobs
                answer["prompt_logprobs"] = prompt_logprobs(self._tokenizer, first.request.prompt, entries, count)
        return {**self._completion(answers), "usage": usage}

    def _best(self, choices: Sequence[Delta]) -> list[Delta]:
        """Of the candidates of each prompt the n likeliest, the best first."""
        n, candidates = self._request.n or 1, self._job.n
        if candidates == n:
            return list(choices)
        best: list[Delta] = []
        for start in range(0, len(choices), candidates):
            group = choices[start : start + candidates]
            best += sorted(group, key=lambda choice: -self._job.choices[choice.index].mean_logprob)[:n]
        return [replace(choice, index=index) for index, choice in enumerate(best)]

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._job.id,
            "object": "text_completion",
            "created": self._job.created,
            "model": self._request.model,
            "choices": choices,
        }

    def _choice(self, delta: Delta) -> CompletionChoice:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        logprobs, self._offsets[delta.index] = completion_logprobs(
            self._tokenizer, (*delta.echoed, *delta.logprobs), self._offsets.get(delta.index, 0)
        )
        return logprobs
