"""Makes the HTTP application from an engine client, a tokenizer and a configuration."""

from collections.abc import Collection
from functools import partial

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from octavo.engine.api import ExpertShape
from octavo.engine.client import EngineClient
from octavo.server.anthropic import messages as anthropic
from octavo.server.config import ServerConfig
from octavo.server.experts.record import ExpertRecord
from octavo.server.generation.intake import Intake
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.places import Places
from octavo.server.generation.preparer import Preparer
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
from octavo.server.http import expert_metrics, health, metrics, openapi, page, version
from octavo.server.http.auth import ApiKeys
from octavo.server.http.body import BodyDecoding, BodyLimit, BodyPace
from octavo.server.http.cors import Cors
from octavo.server.http.errors import error_response, from_http
from octavo.server.http.middleware import ANTHROPIC_REQUEST_ID, REQUEST_ID, Errors, RequestTrace
from octavo.server.http.paths import RootPath, path_meant, route_path
from octavo.server.http.trace import Trace
from octavo.server.openai import chat, completions, experts, models, responses, tokenize
from octavo.server.text.tokenizer import Tokenizer

EXPOSED = (REQUEST_ID, ANTHROPIC_REQUEST_ID, "retry-after")  # headers of answers that pages of allowed origins may read


def create_app(client: EngineClient, tokenizer: Tokenizer, config: ServerConfig) -> FastAPI:
    """Makes the application from nothing but the arguments; the caller owns the engine and ends it."""
    counted = metrics.Metrics(lambda: client.stats, config.served_model_name)
    record = _expert_record(client, counted, config)
    check = ParameterCheck()
    preparer = Preparer(Texts(tokenizer, config, check))
    intake, places = Intake(config.max_body_bytes), Places(client)
    service = Service(tokenizer, config, check, client, counted, intake, preparer, places, record)
    app = FastAPI(
        title="Octavo",
        openapi_url=None,  # FastAPI's own document would not show the bodies, which generation.request.parse parses
        redirect_slashes=False,
        middleware=_middleware(config),
    )
    routers = [
        health.router(client),
        metrics.router(counted),
        version.router(),
        models.router(service),
        completions.router(service),
        chat.router(service),
        responses.router(service),
        anthropic.router(service),
        tokenize.router(service),
        experts.router(service),
    ]
    routers += [openapi.router(config, routers), page.router()]
    for router in routers:
        _add_head(router)
        app.include_router(router)
    paths = {route.path for router in routers for route in router.routes if isinstance(route, Route)}
    app.add_exception_handler(HTTPException, partial(_http_error, paths))
    return app


def _expert_record(client: EngineClient, counted: metrics.Metrics, config: ServerConfig) -> ExpertRecord:
    """Returns the record of what the engine tells of experts, from which the metrics read if they are to."""
    record = ExpertRecord()
    client.on_expert_use(record.add)
    if config.expert_metrics:

        def shape() -> ExpertShape | None:
            return None if client.ready is None else client.ready.experts

        counted.registry.register(expert_metrics.ExpertCollector(record, shape, config.served_model_name))
    return record


def _add_head(router: APIRouter) -> None:
    """Lets HEAD ask for whatever GET asks for, as HTTP wants it. The server sends the headers alone."""
    for route in router.routes:
        if isinstance(route, Route) and route.methods is not None and "GET" in route.methods:
            route.methods.add("HEAD")


def _middleware(config: ServerConfig) -> list[Middleware]:
    """Returns the middleware, outermost first.

    Errors so carry a request id and CORS headers, and a body is not read if the key is wrong.
    """
    return [
        Middleware(RootPath, root_path=config.root_path),
        Middleware(RequestTrace),
        Middleware(Cors, origins=config.allowed_origins, exposed=EXPOSED),
        Middleware(Errors),
        Middleware(ApiKeys, keys=config.api_keys),
        Middleware(BodyPace, timeout=config.timeout_body),
        Middleware(BodyLimit, max_bytes=config.max_body_bytes),
        Middleware(BodyDecoding, max_bytes=config.max_body_bytes),
    ]


async def _http_error(paths: Collection[str], request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = route_path(request.scope)
    meant = path_meant(path, paths)
    return error_response(from_http(error, request.method, path, meant), path, Trace.of(request.scope).request_id)
