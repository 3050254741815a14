"""Serves the built-in page: the files of server/web, open to everybody. The API that they call asks for the key."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from octavo.server.http.errors import NotFound

DIRECTORY = Path(__file__).parents[1] / "web"
INDEX = "index.html"
DOCS = "docs.html"
PREFIX = "/web/"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page shows what a model writes as text nodes. If that ever fails, the browser still runs and loads none of it.
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # the browser always asks (the answer is 304), so that versions never mix
}


@dataclass(frozen=True, slots=True)
class Asset:
    """An Asset is a file of the page, read once when the app is made."""

    content: bytes
    media_type: str
    etag: str


def is_open(path: str) -> bool:
    """Returns whether a path belongs to the page. It needs no API key, which a browser could not send for it."""
    return path in ("/", "/docs") or path.startswith(PREFIX)


def read_assets() -> dict[str, Asset]:
    """Returns the files of the page by name."""
    return {path.name: _read(path) for path in sorted(DIRECTORY.iterdir()) if path.suffix in MEDIA_TYPES}


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    assets = read_assets()

    @routes.get("/")
    async def read_page(http: HttpRequest) -> Response:
        return _answer(http, assets, INDEX)

    @routes.get("/docs")
    async def read_docs(http: HttpRequest) -> Response:
        return _answer(http, assets, DOCS)

    @routes.get(PREFIX + "{name}")
    async def read_asset(http: HttpRequest, name: str) -> Response:
        return _answer(http, assets, name)

    return routes


def _answer(http: HttpRequest, assets: Mapping[str, Asset], name: str) -> Response:
    """Answers with a file that was read at the start; the disk is never searched. Raises NotFound."""
    if name not in assets:
        raise NotFound(f"The page has no file '{name[:100]}'; it is served at /.")
    asset = assets[name]
    headers = HEADERS | {"etag": asset.etag}
    if asset.etag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers | {"content-type": asset.media_type})
