"""Whether requests are served now, and if not, why."""

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import Progress, Ready
from octavo.engine.client import Draining, EngineClient, EngineState, Failed, Loading
from octavo.server.http.errors import ServiceUnavailable
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class Health(TypedDict):
    status: str


def require_ready(client: EngineClient) -> Ready:
    """The engine's bounds. Raises ServiceUnavailable, with the reason, when it takes no requests."""
    if isinstance(client.state, Ready):
        return client.state
    raise ServiceUnavailable(_reason(client.state))


def _reason(state: EngineState) -> str:
    match state:
        case Loading(progress, None):
            return f"The model is loading{_described(progress)}; try again soon."
        case Loading(progress, error):
            return f"The engine stopped ({error}) and is being restarted{_described(progress)}; try again soon."
        case Draining():
            return "The server is shutting down; it finishes open requests and takes no new ones."
        case Failed(error):
            return f"The engine failed ({error}); the server is about to exit."
        case _:
            return "The engine is not ready; try again soon."


def _described(progress: Progress | None) -> str:
    if progress is None:
        return ""
    share = f" ({100 * progress.done // progress.total} %)" if progress.total else ""
    return f": {progress.what}, {progress.done} of {progress.total}{share}"


def router(client: EngineClient) -> APIRouter:
    routes = APIRouter()
    operation = Operation("Service", Health, failures=(ServiceUnavailable,))

    @routes.api_route("/health", methods=["GET", "HEAD"], openapi_extra=operation.extra())
    async def read_health() -> Response:
        """Whether requests are served now."""
        require_ready(client)
        health: Health = {"status": "ok"}
        return Response(encode_json(health), media_type="application/json")

    return routes
