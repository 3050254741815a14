"""Writes the answer of /v1/completions: its objects, and the writer that makes them from deltas."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from octavo.engine.api import FinishReason
from octavo.server.generation.choices import Delta, joined
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.respond import ChunkWriter
from octavo.server.openai.completions_request import CompletionRequest
from octavo.server.openai.logprobs import CompletionLogprobs, PromptLogprobs, completion_logprobs, prompt_logprobs
from octavo.server.openai.routed_experts import SglExt, StreamedRoutes, asks_for_routes, routed_fields, sglext
from octavo.server.text.tokenizer import Tokenizer


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    cut_short: NotRequired[str]  # why the choice ends early; an extension
    prompt_logprobs: NotRequired[PromptLogprobs]
    routed_experts: NotRequired[str]  # as RoutedFields says
    routed_experts_weights: NotRequired[str]


class Completion(TypedDict):
    """Is a whole answer, or a chunk. A chunk has no usage unless the client asked for it; then it is null at first."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    sglext: NotRequired[SglExt]


class CompletionWriter(ChunkWriter):
    """Implements respond.AnswerWriter: chunks and whole answers consist of the same choices."""

    def __init__(self, job: Job, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._job = job
        self._request = request
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}  # index of a choice -> characters of its tokens so far
        self._routed = asks_for_routes(job)
        self._routes = StreamedRoutes(self._routed)

    def chunks(self, delta: Delta) -> list[Completion]:
        """Returns a chunk for what the delta says, and one without text for its finish reason."""
        choices: list[CompletionChoice] = []
        self._routes.feed(delta)
        if delta.text or delta.logprobs or delta.echoed:
            shown = self._choice(replace(delta, finish_reason=None, cut=None))
            choices.append({**shown, **self._routes.take(delta.index)})
        if delta.finish_reason is not None:
            ended: CompletionChoice = {
                "index": delta.index,
                "text": "",
                "logprobs": None,
                "finish_reason": delta.finish_reason,
            }
            if delta.cut is not None:
                ended["cut_short"] = delta.cut
            choices.append({**ended, **self._routes.take(delta.index)})
        return [self._chunk(choice) for choice in choices]

    def _chunk(self, choice: CompletionChoice) -> Completion:
        return self._counted(self._completion([choice]))

    def _counted(self, chunk: Completion) -> Completion:
        """Returns the chunk with the usage so far if the client wants it; with null if it wants it at the end."""
        if self._request.counts_usage or self._request.includes_usage:
            chunk["usage"] = self._job.usage() if self._request.counts_usage else None
        return chunk

    def routes_chunk(self) -> Completion | None:
        return self._counted({**self._completion([]), **self._routes.closing()}) if self._routed else None

    def usage_chunk(self, usage: Usage) -> Completion | None:
        return {**self._completion([]), "usage": usage} if self._request.includes_usage else None

    def whole(self, choices: Sequence[Sequence[Delta]], usage: Usage) -> Completion:
        best = self._best([joined(deltas) for deltas in choices])
        answers = [self._choice(choice) for choice in best]
        if (count := self._request.prompt_logprobs) is not None:
            n = self._request.n or 1
            for position, answer in enumerate(answers):
                first = self._job.choices[position // n * self._job.n]
                entries = first.prompt_logprobs
                answer["prompt_logprobs"] = prompt_logprobs(self._tokenizer, first.request.prompt, entries, count)
        completion: Completion = {**self._completion(answers), "usage": usage}
        if self._routed:
            routed = zip(answers, best, strict=True)
            completion["choices"] = [{**answer, **routed_fields(choice.routes)} for answer, choice in routed]
            completion["sglext"] = sglext(best[0].routes)
        return completion

    def _best(self, choices: Sequence[Delta]) -> list[Delta]:
        """Returns the n likeliest candidates of each prompt, the best first."""
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
        choice: CompletionChoice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.cut is not None:
            choice["cut_short"] = delta.cut
        return choice

    def _logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        logprobs, self._offsets[delta.index] = completion_logprobs(
            self._tokenizer, (*delta.echoed, *delta.logprobs), self._offsets.get(delta.index, 0)
        )
        return logprobs
