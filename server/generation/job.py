"""A Job is one admitted API request: it turns the engine's outputs into deltas of its choices, and counts them."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from typing_extensions import TypedDict

from octavo.engine.api import FinishReason, Output, Ready
from octavo.engine.client import Generation
from octavo.server.generation.choices import Choice, Delta
from octavo.server.generation.service import Service
from octavo.server.http.errors import ApiError, InternalError, ServiceUnavailable
from octavo.server.http.trace import Trace

logger = logging.getLogger(__name__)


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


@dataclass
class Job:
    """Holds n choices for the first prompt, then n for the second, and so on."""

    id: str
    choices: Sequence[Choice]
    n: int
    generation: Generation
    service: Service
    trace: Trace
    created: int = field(default_factory=lambda: int(time.time()))
    _last_token: dict[int, float] = field(default_factory=dict)  # choice index -> when its last token came
    _said: list[Delta] = field(default_factory=list)  # what the log will show; empty unless text may be logged
    _closed: bool = False

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yields deltas until every choice has ended. Raises ApiError when the engine fails one of them."""
        open_choices = {choice.request.id: choice for choice in self.choices}
        async for output in self.generation:
            choice = open_choices.get(output.id)
            if choice is None:
                continue  # the choice ended at a stop string while this output was on its way
            self._observe(choice, output)
            delta = choice.push(output)
            if choice.finish_reason is not None:
                del open_choices[output.id]
            if choice.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise self._failure(output)
            if choice.cut is not None:
                logger.warning("%s ended early: %s", output.id, choice.cut)
            if choice.finish_reason is not None and output.finish_reason is None:
                self.generation.abort(output.id)
            if delta is not None:
                if self.service.config.log_text:
                    self._said.append(delta)
                yield delta
            if not open_choices:
                return
        raise InternalError("The engine ended the request without an answer.")

    def _observe(self, choice: Choice, output: Output) -> None:
        now = time.perf_counter()
        if not output.token_ids:
            return
        if self.trace.first_token is None:
            self.trace.first_token = now
            self.service.metrics.time_to_first_token.observe(now - self.trace.started)
        if (last := self._last_token.get(choice.index)) is not None:
            self.service.metrics.inter_token_latency.observe((now - last) / len(output.token_ids))
        self._last_token[choice.index] = now

    def _failure(self, output: Output) -> ApiError:
        message = output.error or "The engine ended the request before its answer was complete."
        return InternalError(message) if isinstance(self.service.client.state, Ready) else ServiceUnavailable(message)

    def usage(self) -> Usage:
        """Counts each prompt once, however many choices it has.

        Its cached tokens are those of the choice that has the fewest: the others may have found the first one's blocks.
        """
        firsts = self.choices[:: self.n]
        prompt = sum(len(choice.request.prompt) for choice in firsts)
        completion = sum(choice.completion_tokens for choice in self.choices)
        cached = sum(
            min(c.cached_tokens for c in self.choices[i : i + self.n]) for i in range(0, len(self.choices), self.n)
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def close(self) -> None:
        """Aborts whatever still runs, and records metrics. It belongs in a `finally`, and may be called twice."""
        self.generation.close()
        if self._closed:
            return
        self._closed = True
        usage = self.usage()
        reasons = [choice.finish_reason or FinishReason.ABORT for choice in self.choices]
        self.trace.prompt_tokens = usage["prompt_tokens"]
        self.trace.completion_tokens = usage["completion_tokens"]
        self.trace.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        self.trace.finish_reasons = [reason.value for reason in reasons]
        metrics = self.service.metrics
        metrics.prompt_tokens.inc(usage["prompt_tokens"])
        metrics.generation_tokens.inc(usage["completion_tokens"])
        metrics.e2e_request_latency.observe(time.perf_counter() - self.trace.started)
        for reason in reasons:
            metrics.request_success[reason].inc()
        if self.service.config.log_text:
            self._log_text()

    def _log_text(self) -> None:
        decode = self.service.tokenizer.backend.decode
        for choice in self.choices:
            prompt = decode(list(choice.request.prompt), skip_special_tokens=False)
            answer = "".join(delta.text for delta in self._said if delta.index == choice.index)
            logger.info("%s prompt %r answer %r", choice.request.id, prompt, answer)
