"""`respond` sends the same deltas as a stream or as a whole, and closes the generation either way."""

from dataclasses import replace
from math import inf

import pytest

from octavo.engine.api import Output, TokenLogprobs
from tests.server.client import Client, each_endpoint
from tests.server.fake import replay
from tests.server.vocab import EOS, ids_of


@each_endpoint
@pytest.mark.parametrize("stream", [False, True, None])
def test_the_generation_is_closed(endpoint: str, stream: bool | None) -> None:
    client = Client.replaying(replay([*ids_of("ab"), EOS]))
    reply = client.generate(endpoint, stream=stream)
    assert reply.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert [generation.closed for generation in client.engine.generations] == [True]


@each_endpoint
def test_id_and_time_are_the_same_throughout(endpoint: str) -> None:
    events = Client.replaying(replay([*ids_of("abc"), EOS])).generate(endpoint, stream=True).events()
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1


@each_endpoint
def test_every_response_has_an_id_of_its_own(endpoint: str) -> None:
    client = Client()
    assert client.generate(endpoint).json()["id"] != client.generate(endpoint).json()["id"]


@each_endpoint
def test_what_cannot_be_encoded_is_told_within_the_stream(endpoint: str) -> None:
    output = Output("0", (65,), (TokenLogprobs(inf, ((65, inf),), 1),))
    client = Client.replaying(lambda request: [replace(output, id=request.id), None])
    asked = {"logprobs": 1} if endpoint == "complete" else {"logprobs": True, "top_logprobs": 1}
    events = client.generate(endpoint, stream=True, **asked).events()
    assert events[-1]["error"]["type"] == "server_error"
