"""The page's files have the right headers and ETags, need no key, and load nothing from elsewhere."""

import re

import pytest

from octavo.server.config import ServerConfig
from octavo.server.http import page
from tests.server.client import MODEL, Client

CLIENT = Client()
NAMES = sorted(page.read_assets())
each_name = pytest.mark.parametrize("name", NAMES)


def at(name: str) -> str:
    return {page.INDEX: "/", page.DOCS: "/docs"}.get(name, f"/web/{name}")


@each_name
def test_a_file(name: str) -> None:
    reply = CLIENT.get(at(name))
    assert reply.status == 200
    assert reply.body == (page.DIRECTORY / name).read_bytes()
    assert reply.headers["content-type"] == page.MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-content-type-options"] == "nosniff"


@each_name
def test_head(name: str) -> None:
    reply, whole = CLIENT.call("HEAD", at(name), b"", {}), CLIENT.get(at(name))
    assert reply.status == 200
    assert {**reply.headers, "x-request-id": ""} == {**whole.headers, "x-request-id": ""}


def test_what_the_browser_has_is_not_sent_again() -> None:
    etag = CLIENT.get("/").headers["etag"]
    reply = CLIENT.get("/", if_none_match=f'W/"other", {etag}')
    assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
    assert reply.headers["content-security-policy"] == page.POLICY
    assert CLIENT.get("/", if_none_match='"other"').status == 200
    assert CLIENT.get("/web/app.js").headers["etag"] != etag


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline() -> None:
    policy = CLIENT.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@each_name
def test_no_file_names_another_host_or_builds_html(name: str) -> None:
    text = (page.DIRECTORY / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://\w", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\sstyle=|\son\w+=", text)
    assert len(text.splitlines()) <= 350


def test_addresses_are_relative() -> None:
    """The page works under any prefix."""
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', CLIENT.get("/").body.decode())
    assert addresses
    for address in addresses:
        assert CLIENT.get("/" + address).status == 200


@pytest.mark.parametrize(
    "path", ["/web/", "/web/nothing.js", "/web/../page.py", "/web/..%2fpage.py", "/web/a/b", "/web"]
)
def test_other_files_are_not_found(path: str) -> None:
    reply = CLIENT.get(path)
    assert (reply.status, reply.error["code"]) == (404, "not_found")


def test_a_key_opens_the_api_alone() -> None:
    client = Client(config=ServerConfig((MODEL,), api_keys=("secret",)))
    assert {client.get(at(name)).status for name in NAMES} == {200}
    assert client.get("/v1/models").status == 401
    assert client.get("/web").status == 401
