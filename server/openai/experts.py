"""Serves /v1/experts: which experts of a sparse model serve, by layer and by the topic of requests."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import ExpertShape
from octavo.server.experts.export import npz
from octavo.server.experts.figures import ExpertsAnswer, of_dense, of_sparse
from octavo.server.generation.service import Service
from octavo.server.http.errors import NotFound, ServiceUnavailable
from octavo.server.http.health import require_ready
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class ServedExperts(ExpertsAnswer):
    control: bool  # whether requests may change the choice of experts: the server has --allow-expert-control


EXPERTS = Operation("Experts", ServedExperts, failures=(ServiceUnavailable,))
EXPORT = Operation("Experts", bytes, failures=(NotFound, ServiceUnavailable))


class ResetAnswer(TypedDict):
    object: Literal["experts.reset"]
    since: int  # seconds since 1970: now


RESET = Operation("Experts", ResetAnswer)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/experts", openapi_extra=EXPERTS.extra())
    async def read_experts() -> Response:
        """Tells which experts serve, since the start or the last reset, in the last minutes, and by topic.

        A dense model answers, too, and says that it has no experts: whoever watches servers need not know which model
        each of them has. The topic of a request is its `metadata.topic`. Tokens from the prefix cache are not counted.
        """
        shape, model = _shape(service), service.config.served_model_name
        if shape is None:
            return _json(encode_json(_served(of_dense(model), False)))
        snapshot, control = service.experts.snapshot(shape), service.config.allow_expert_control
        return _json(await asyncio.to_thread(lambda: encode_json(_served(of_sparse(model, shape, snapshot), control))))

    @routes.get("/v1/experts.npz", openapi_extra=EXPORT.extra())
    async def export_experts() -> Response:
        """Exports the counts of /v1/experts as arrays, in a file for numpy.load."""
        shape = _shape(service)
        if shape is None:
            raise NotFound("The model is dense: it has no experts to count, so there is nothing to export.")
        file = await asyncio.to_thread(npz, shape, service.experts.snapshot(shape))
        disposition = {"content-disposition": 'attachment; filename="experts.npz"'}
        return Response(file, media_type="application/octet-stream", headers=disposition)

    @routes.post("/v1/experts/reset", openapi_extra=RESET.extra())
    async def reset_experts() -> Response:
        """Begins to count anew, with room for other topics. The counters of /metrics go on."""
        service.experts.reset()
        answer: ResetAnswer = {"object": "experts.reset", "since": int(service.experts.since)}
        return _json(encode_json(answer))

    return routes


def _shape(service: Service) -> ExpertShape | None:
    """Returns what the model has to choose from; None: it is dense.

    Raises ServiceUnavailable before the engine was ready for the first time.
    """
    return (service.client.ready or require_ready(service.client)).experts


def _served(answer: ExpertsAnswer, control: bool) -> ServedExperts:
    return {**answer, "control": control}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
