"""Serves /v1/models: the model that is served, under each of its names, as OpenAI's and Anthropic's clients read it."""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.generation.service import Service
from octavo.server.http.errors import ModelNotFound
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class Model(TypedDict):
    """Has the fields of both APIs: OpenAI's first, then Anthropic's."""

    id: str
    object: Literal["model"]
    created: int  # seconds since 1970, as for created_at: when the server was started
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]


class ModelList(TypedDict):
    """Has the fields of both APIs. Anthropic's tell of pages; there is only one."""

    object: Literal["list"]
    data: list[Model]
    has_more: Literal[False]
    first_id: str
    last_id: str


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    started = datetime.now(UTC).replace(microsecond=0)

    def model(name: str) -> Model:
        return {
            "id": name,
            "object": "model",
            "created": int(started.timestamp()),
            "owned_by": "octavo",
            "type": "model",
            "display_name": name,
            "created_at": started.isoformat().replace("+00:00", "Z"),
            "lifecycle": "active",
        }

    @routes.get("/v1/models", openapi_extra=Operation("Models", ModelList).extra())
    async def list_models() -> Response:
        """Lists the models that are served."""
        names = service.config.served_model_names
        models: ModelList = {
            "object": "list",
            "data": [model(name) for name in names],
            "has_more": False,
            "first_id": names[0],
            "last_id": names[-1],
        }
        return Response(encode_json(models), media_type="application/json")

    one = Operation(
        "Models", Model, failures=(ModelNotFound,), parameters={"name": "Names a model; it may hold slashes."}
    )

    @routes.get("/v1/models/{name:path}", openapi_extra=one.extra())  # names of hub models contain a slash
    async def retrieve_model(name: str) -> Response:
        """Returns one model."""
        service.require_model(name)
        return Response(encode_json(model(name)), media_type="application/json")

    return routes
