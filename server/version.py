"""/version: which Octavo this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from server.operations import Operation
from server.wire import encode_json


class Version(TypedDict):
    version: str


def version() -> str:
    try:
        return version_of("octavo")
    except PackageNotFoundError:
        return "(not installed: run from its sources)"


def router() -> APIRouter:
    routes = APIRouter()

    @routes.get("/version", openapi_extra=Operation("Service", Version).extra())
    async def read_version() -> Response:
        """Which Octavo this is."""
        answer: Version = {"version": version()}
        return Response(encode_json(answer), media_type="application/json")

    return routes
