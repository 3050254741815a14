"""Tests that /tokenize and /detokenize show the very tokens that generation would see, in vLLM's form."""

from dataclasses import replace
from typing import Any

import pytest

from octavo.engine.client import Loading
from octavo.server.generation.counting import A_TOKEN, LEAST
from octavo.server.http.streaming import Sliced
from octavo.server.openai.tokenize import MAX_IDS
from tests.server.client import MODEL, Client
from tests.server.fake import READY, FakeEngineClient
from tests.server.vocab import BOS, BYTES, EOS, ids_of

CONVERSATION = [{"role": "user", "content": "hi"}]


def test_a_prompt() -> None:
    reply = Client().post("/tokenize", {"model": MODEL, "prompt": "hé"})
    ids = [BOS, *ids_of("hé")]
    assert reply.json() == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}


def test_a_conversation_is_what_chat_would_generate_from() -> None:
    client = Client()
    client.chat(messages=CONVERSATION)
    tokens = client.post("/tokenize", {"model": MODEL, "messages": CONVERSATION}).json()["tokens"]
    assert tuple(tokens) == client.engine.submitted[0].prompt


@pytest.mark.parametrize(("text", "default"), [({"prompt": "a"}, True), ({"messages": CONVERSATION}, False)])
def test_special_tokens(text: dict[str, Any], default: bool) -> None:
    for wanted in (None, True, False):
        tokens = Client().post("/tokenize", {"model": MODEL, "add_special_tokens": wanted} | text).json()["tokens"]
        assert (tokens[0] == BOS) is (default if wanted is None else wanted)


def test_the_spelling_of_tokens() -> None:
    body = {"prompt": "a b", "return_token_strs": True}
    assert Client().post("/tokenize", body).json()["token_strs"] == ["<s>", "a", "Ġ", "b"]


def test_there_and_back() -> None:
    client = Client()
    tokens = client.post("/tokenize", {"prompt": "héllo 🦑"}).json()["tokens"]
    assert client.post("/detokenize", {"model": MODEL, "tokens": [*tokens, EOS]}).json() == {
        "prompt": "<s>héllo 🦑</s>"
    }
    assert client.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_an_empty_prompt_has_no_tokens_of_its_own() -> None:
    assert Client().post("/tokenize", {"prompt": ""}).json()["tokens"] == [BOS]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "messages": CONVERSATION}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ({"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"messages": "hi"}, "messages"),
        ({"messages": CONVERSATION, "temperature": 9}, "temperature"),
        ({"prompt": "a", "model": 5}, "model"),
    ],
)
def test_bad_requests(body: dict[str, Any], param: str) -> None:
    reply = Client().post("/tokenize", body)
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("tokens", [None, "a", ["a"], [-1], [BYTES + 256], [2**70], [1.5], [True]])
def test_bad_tokens(tokens: Any) -> None:
    reply = Client().post("/detokenize", {"model": MODEL, "tokens": tokens})
    assert reply.status == 400 and reply.error["param"].startswith("tokens")


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})])
def test_a_model_that_is_not_served(path: str, body: dict[str, Any]) -> None:
    assert Client().post(path, body | {"model": "other"}).status == 404


def test_before_the_engine_was_ready_nobody_knows_the_length() -> None:
    client = Client(FakeEngineClient(state=Loading()))
    assert client.post("/tokenize", {"prompt": "a"}).status == 503
    assert client.post("/detokenize", {"tokens": ids_of("a")}).json() == {"prompt": "a"}


def test_there_is_a_limit_of_text_and_of_ids() -> None:
    long = "é" * (LEAST // 2)
    assert Client().post("/tokenize", {"prompt": long}).status == 200
    conversation = [{"role": "user", "content": long}]
    for path, body, param in [
        ("/tokenize", {"prompt": long + "a"}, "prompt"),
        ("/tokenize", {"messages": conversation}, "messages"),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": conversation}, None),
        ("/detokenize", {"tokens": [5] * (MAX_IDS + 1)}, "tokens"),
    ]:
        reply = Client().post(path, body)
        assert (reply.status, reply.error.get("param")) == (400, param)


def test_a_wider_context_has_more_room() -> None:
    client = Client(FakeEngineClient(state=replace(READY, max_model_len=LEAST // A_TOKEN + 1)))
    assert client.post("/tokenize", {"prompt": "a" * (LEAST + A_TOKEN)}).status == 200
    assert client.post("/tokenize", {"prompt": "a" * (LEAST + A_TOKEN + 1)}).status == 400


def test_a_long_answer_is_sent_in_slices() -> None:
    reply = Client().post("/tokenize", {"prompt": "a" * 40_000})
    assert max(map(len, reply.parts)) == Sliced.SLICE
    assert reply.json()["count"] == 40_001 == len(reply.json()["tokens"])
    assert reply.headers["content-length"] == str(len(reply.body))
