"""Compressed bodies are unpacked within the limit of any body, and refused by name where they cannot be."""

import gzip
import json
import zlib

import pytest

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client

BODY = json.dumps({"prompt": "hello " * 50}).encode()


def packed(coding: str) -> bytes:
    if coding == "raw":
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(BODY) + packer.flush()
    return zlib.compress(BODY) if coding == "deflate" else gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", packed("gzip")),
        ("x-gzip", packed("gzip")),
        (" GZIP ", packed("gzip")),
        ("deflate", packed("deflate")),
        ("deflate", packed("raw")),
        ("identity", BODY),
        ("", BODY),
    ],
)
def test_a_compressed_body_is_read(coding: str, body: bytes) -> None:
    reply = Client().post("/tokenize", body, content_encoding=coding)
    assert reply.status == 200
    assert reply.json() == Client().post("/tokenize", BODY).json()


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "ünknown", "x" * 1000])
def test_any_other_coding_is_named(coding: str) -> None:
    reply = Client().post("/tokenize", BODY, content_encoding=coding)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
    assert coding[:100] in reply.error["message"]
    assert len(reply.error["message"]) < 250
    assert reply.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"cut", b"more"])
def test_a_damaged_body_is_told_so(coding: str, damage: bytes) -> None:
    whole = packed(coding)
    body = {b"cut": whole[:-1], b"more": whole + b"more"}.get(damage, damage)
    reply = Client().post("/tokenize", body, content_encoding=coding)
    assert reply.status == 400
    assert f"Content-Encoding, {coding}" in reply.error["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_goes_off_nowhere(coding: str) -> None:
    zeros = b'{"prompt": "' + b" " * 50_000_000 + b'"}'
    body = gzip.compress(zeros) if coding == "gzip" else zlib.compress(zeros)
    client = Client(config=ServerConfig((MODEL,), max_body_bytes=1_000_000))
    reply = client.post("/tokenize", body, content_encoding=coding)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_coding_without_a_body_is_passed_over() -> None:
    assert Client().get("/health", content_encoding="br").status == 200
