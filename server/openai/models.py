"""Serves /v1/models: the model that is served, under each of its names."""

import time
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.generation.service import Service
from octavo.server.http.errors import ModelNotFound
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    started = int(time.time())

    def model(name: str) -> Model:
        return {"id": name, "object": "model", "created": started, "owned_by": "octavo"}

    @routes.get("/v1/models", openapi_extra=Operation("Models", ModelList).extra())
    async def list_models() -> Response:
        """Lists the models that are served."""
        models: ModelList = {"object": "list", "data": [model(name) for name in service.config.served_model_names]}
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
