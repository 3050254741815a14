"""One answer, two ways to send it: as a stream of chunks or as a whole, from the same deltas."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.choices import Delta
from server.errors import as_api_error
from server.job import Job, Usage
from server.streaming import EventStream, until_disconnect
from server.wire import DONE, encode_json, event


class Shape(Protocol):
    """The objects of one endpoint; one instance per request, since chunks may depend on those before."""

    def chunks(self, delta: Delta) -> Sequence[Mapping[str, object]]: ...

    def usage_chunk(self, usage: Usage) -> Mapping[str, object] | None:
        """The last chunk; None when no usage was asked for."""

    def whole(self, choices: Sequence[Delta], usage: Usage) -> Mapping[str, object]:
        """The response that is not streamed, from one complete delta per choice."""


async def respond(http: HttpRequest, job: Job, shape: Shape, stream: bool) -> Response:
    """Closes the job when the answer is complete, has failed, or is no longer wanted."""
    if stream:
        return EventStream(_events(job, shape), job.service.config.keep_alive, job.close)
    try:
        answer = await until_disconnect(_collect(job), http.receive)
        return Response(encode_json(shape.whole(answer, job.usage())), media_type="application/json")
    finally:
        job.close()


async def _events(job: Job, shape: Shape) -> AsyncGenerator[bytes, None]:
    """Every stream ends in one [DONE], that of a failure too: after the error event, which clients act on first."""
    try:
        async with aclosing(job.deltas()) as deltas:
            async for delta in deltas:
                for chunk in shape.chunks(delta):
                    yield event(chunk)
        if (last := shape.usage_chunk(job.usage())) is not None:
            yield event(last)
    except Exception as error:
        yield event(as_api_error(error).body())
    yield DONE


async def _collect(job: Job) -> list[Delta]:
    parts: dict[int, list[Delta]] = {choice.index: [] for choice in job.choices}
    async for delta in job.deltas():
        parts[delta.index].append(delta)
    return [_joined(deltas) for deltas in parts.values()]


def _joined(deltas: Sequence[Delta]) -> Delta:
    return Delta(
        index=deltas[-1].index,
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish_reason=deltas[-1].finish_reason,
    )
