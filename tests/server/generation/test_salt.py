"""Cached prefixes are shared by requests of one key and one cache_salt, and by no others."""

from typing import Any

import pytest

from octavo.server.config import ServerConfig
from octavo.server.generation.salt import prefix_salt
from tests.server.client import MODEL, Client

KEYS = ("first", "second")
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
}


def keyed(**config: Any) -> Client:
    return Client(config=ServerConfig((MODEL,), api_keys=KEYS, **config))


def salt_of(client: Client, key: str, path: str = "/v1/completions", **parameters: Any) -> str:
    reply = client.post(path, {"model": MODEL} | ENDPOINTS[path] | parameters, authorization=f"Bearer {key}")
    assert reply.status == 200
    return client.engine.submitted[-1].cache_salt


def test_each_part_has_its_length_before_it() -> None:
    parts = [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("ab", ""), ("", "ab"), ("a\0", "b"), ("a", "\0b")]
    assert len({prefix_salt(*pair) for pair in parts}) == len(parts)
    assert prefix_salt("a", "b") == prefix_salt("a", "b")


def test_a_salt_may_be_any_text() -> None:
    assert prefix_salt("", "\ud800") != prefix_salt("", "\udfff")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_keys_share_nothing(path: str) -> None:
    client = keyed()
    first, again, second = (salt_of(client, key, path) for key in ("first", "first", "second"))
    assert first == again != second


def test_a_client_cannot_name_another_ones_salt() -> None:
    client = keyed()
    other = salt_of(client, "first")
    assert other not in (salt_of(client, "second", cache_salt=salt) for salt in ("first", other, ""))


def test_a_cache_salt_divides_the_cache_of_a_key() -> None:
    client = keyed()
    salts = [salt_of(client, key, cache_salt=salt) for key in KEYS for salt in ("", "a", "b", "a")]
    assert len(set(salts)) == 6


@pytest.mark.parametrize("path", ENDPOINTS)
def test_one_cache_for_those_who_want_it(path: str) -> None:
    client = keyed(share_prefix_cache=True)
    assert salt_of(client, "first", path) == salt_of(client, "second", path)
    assert salt_of(client, "first") != salt_of(client, "first", cache_salt="mine")


def test_without_keys_all_share() -> None:
    client = Client()
    assert salt_of(client, "anything") == salt_of(client, "something else")


def test_the_key_does_not_leave_the_server() -> None:
    client = keyed()
    salt_of(client, "second")
    assert "second" not in repr(client.engine.submitted)
