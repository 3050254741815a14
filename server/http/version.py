"""Answers /version, with the version of Octavo."""

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo import __version__
from octavo.server.http.operations import Operation
from octavo.server.http.wire import encode_json


class Version(TypedDict):
    version: str


def router() -> APIRouter:
    routes = APIRouter()

    @routes.get("/version", openapi_extra=Operation("Service", Version).extra())
    async def read_version() -> Response:
        """Returns the version of Octavo."""
        answer: Version = {"version": __version__}
        return Response(encode_json(answer), media_type="application/json")

    return routes
