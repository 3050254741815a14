"""Sends an answer as a stream of chunks or as a whole, from the same deltas."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job, Usage
from octavo.server.http.errors import ApiError, as_api_error
from octavo.server.http.streaming import EventStream, until_disconnect
from octavo.server.http.wire import DONE, encode_json, event, named_event

Events = Sequence[Mapping[str, object]]


class AnswerWriter(Protocol):
    """Writes the objects of one endpoint. Each request has its own, since an event may depend on those before."""

    named: bool  # events carry their type as a name, and no [DONE] follows the last

    def opening(self) -> Events:
        """Returns what is sent as soon as the request is admitted."""

    def chunks(self, delta: Delta) -> Events:
        """Returns what is sent for a delta."""

    def closing(self, usage: Usage) -> Events:
        """Returns what follows the last delta."""

    def failed(self, error: ApiError, usage: Usage) -> Events:
        """Returns what follows instead when the answer fails."""

    def whole(self, choices: Sequence[Sequence[Delta]], usage: Usage) -> Mapping[str, object]:
        """Returns the response that is not streamed, from all deltas of each choice."""


class ChunkWriter(ABC):
    """Writes the streams of completions and chat: chunks of one kind, and an error object if the answer fails."""

    named = False

    def opening(self) -> Events:
        return ()

    def closing(self, usage: Usage) -> Events:
        return tuple(last for last in (self.routes_chunk(), self.usage_chunk(usage)) if last is not None)

    def failed(self, error: ApiError, usage: Usage) -> Events:
        return (error.body(),)

    @abstractmethod
    def routes_chunk(self) -> Mapping[str, object] | None:
        """Returns the chunk that tells once more which experts served, or None when nobody has asked for them."""

    @abstractmethod
    def usage_chunk(self, usage: Usage) -> Mapping[str, object] | None:
        """Returns the last chunk, or None when no usage was asked for."""


async def respond(http: HttpRequest, job: Job, writer: AnswerWriter, stream: bool) -> Response:
    """Sends the answer. Closes the job when it is complete, has failed, or is no longer wanted."""
    if stream:
        return EventStream(_events(job, writer), job.service.config.keep_alive, job.close)
    try:
        body = await until_disconnect(_whole(job, writer), http.receive)
        return Response(body, media_type="application/json")
    finally:
        job.close()


async def _events(job: Job, writer: AnswerWriter) -> AsyncGenerator[bytes, None]:
    """Yields the stream's bytes. Whatever fails, encoding included, is told within the stream.

    A stream without names ends in one [DONE], also after an error.
    """
    framed = named_event if writer.named else event
    try:
        async with aclosing(_payloads(job, writer)) as payloads:
            async for payload in payloads:
                yield framed(payload)
    except Exception as error:
        for payload in writer.failed(as_api_error(error), job.usage()):
            yield framed(payload)
    if not writer.named:
        yield DONE


async def _payloads(job: Job, writer: AnswerWriter) -> AsyncGenerator[Mapping[str, object], None]:
    for payload in writer.opening():
        yield payload
    async with aclosing(job.deltas()) as deltas:
        async for delta in deltas:
            for payload in writer.chunks(delta):
                yield payload
    for payload in writer.closing(job.usage()):
        yield payload


async def _whole(job: Job, writer: AnswerWriter) -> bytes:
    """Returns the whole answer, written in a thread.

    The log-probabilities of a long prompt take longer than the event loop may wait.
    """
    answer, usage = await _collect(job), job.usage()
    return await asyncio.to_thread(lambda: encode_json(writer.whole(answer, usage)))


async def _collect(job: Job) -> list[list[Delta]]:
    deltas: dict[int, list[Delta]] = {choice.index: [] for choice in job.choices}
    async for delta in job.deltas():
        deltas[delta.index].append(delta)
    return list(deltas.values())
