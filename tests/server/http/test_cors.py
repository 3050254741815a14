"""Pages of other origins get nothing that nobody has allowed them, and the log says how to allow it."""

import logging

import pytest

from octavo.server.config import ServerConfig
from octavo.server.http.cors import MAX_REMEMBERED
from tests.server.client import MODEL, Client

ALLOWED, OTHER = "https://a.example", "https://b.example"
GRANT = "access-control-allow-origin"
PREFLIGHT = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}


def client(*origins: str) -> Client:
    return Client(config=ServerConfig((MODEL,), api_keys=("key",), allowed_origins=origins))


def preflight(origin: str, *allowed: str, **headers: str) -> tuple[int, dict[str, str]]:
    """Asks as a browser does before it sends a request with a key; the preflight itself has none."""
    asked = {"origin": origin, **PREFLIGHT, **headers}
    reply = client(*allowed).call("OPTIONS", "/v1/chat/completions", b"", asked)
    return reply.status, reply.headers


@pytest.mark.parametrize("allowed", [ALLOWED, "*"])
def test_a_preflight_of_an_allowed_origin_needs_no_key(allowed: str) -> None:
    status, headers = preflight(ALLOWED, allowed)
    assert status == 200
    assert headers[GRANT] == ("*" if allowed == "*" else ALLOWED)
    assert headers["access-control-allow-headers"] == "authorization"


def test_an_allowed_origin_may_read_errors_too() -> None:
    refused = client(ALLOWED).get("/v1/models", origin=ALLOWED)
    assert refused.status == 401
    assert refused.headers[GRANT] == ALLOWED
    assert {"x-request-id", "retry-after"} <= set(refused.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "", "https://a.example.evil.example", "https://[", "http://a.example"]
)
def test_any_other_gets_nothing(origin: str) -> None:
    status, headers = preflight(origin, ALLOWED)
    assert status == 400
    assert GRANT not in headers
    answer = Client().get("/health", origin=origin)
    assert answer.status == 200  # the browser keeps it from the page
    assert GRANT not in answer.headers


@pytest.mark.parametrize("headers", [{"host": "127.0.0.1:8000"}, {"host": "10.0.0.1", "sec_fetch_site": "same-origin"}])
def test_the_pages_own_origin_needs_no_flag(headers: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    status, _ = preflight("http://127.0.0.1:8000", **headers)
    assert status == 200
    assert not [record for record in caplog.records if "origins" in record.getMessage()]


def test_a_refused_origin_is_logged_once_with_the_flag_that_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    page = Client()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            page.get("/health", origin=OTHER)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"--allowed-origins '{OTHER}'" in line


def test_the_own_page_behind_a_proxy_that_changes_the_host_is_not_called_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply = Client().post("/tokenize", {"prompt": "hi"}, origin="http://box.example", host="127.0.0.1:8000")
    assert reply.status == 200
    assert not [record for record in caplog.records if "origins" in record.getMessage()]


def test_a_preflight_says_what_would_allow_it() -> None:
    reply = client().call("OPTIONS", "/v1/models", b"", {"origin": OTHER, **PREFLIGHT})
    assert f"--allowed-origins {OTHER}" in reply.error["message"]


def test_whoever_invents_origins_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    page = Client()
    for number in range(MAX_REMEMBERED + 5):
        page.get("/health", origin=f"https://{number}.example")
    assert len(caplog.records) == MAX_REMEMBERED
