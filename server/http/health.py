"""Says whether requests are served now and, if not, why."""

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import Ready
from octavo.engine.client import EngineClient, why_unavailable
from octavo.server.http.errors import ServiceUnavailable
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class Health(TypedDict):
    status: str


def require_ready(client: EngineClient) -> Ready:
    """Returns the engine's bounds. Raises ServiceUnavailable, with the reason, when it takes no requests."""
    if isinstance(client.state, Ready):
        return client.state
    raise ServiceUnavailable(why_unavailable(client.state))


def router(client: EngineClient) -> APIRouter:
    routes = APIRouter()
    operation = Operation("Service", Health, failures=(ServiceUnavailable,))

    @routes.get("/health", openapi_extra=operation.extra())
    async def read_health() -> Response:
        """Says whether requests are served now."""
        require_ready(client)
        health: Health = {"status": "ok"}
        return Response(encode_json(health), media_type="application/json")

    return routes
