"""A Job counts usage over prompts and choices, and ends once."""

import pytest

from octavo.engine.api import Output, Request
from tests.server.client import Client, each_endpoint
from tests.server.fake import LENGTH, STOP, replay
from tests.server.vocab import ids_of


def cached(*counts: int) -> Client:
    """Returns a client whose k-th choices find the k-th number of cached tokens, as only their first outputs say."""

    def script(request: Request) -> list[Output]:
        first = Output(request.id, tuple(ids_of("a")), cached_tokens=counts[request.params.choice])
        return [first, Output(request.id, tuple(ids_of("bc")), finish_reason=LENGTH)]

    return Client.replaying(script)


@pytest.mark.parametrize("stream", [False, True])
def test_usage(stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    reply = cached(2, 4, 4).complete(prompt=["hi", "hello"], n=3, stream=stream, **options)
    usage = reply.events()[-1]["usage"] if stream else reply.json()["usage"]
    assert usage == {
        "prompt_tokens": 3 + 6,  # a prompt counts once
        "completion_tokens": 6 * 3,
        "total_tokens": 9 + 18,
        "prompt_tokens_details": {"cached_tokens": 2 + 2},  # the other choices find what the first one has computed
    }


def test_outputs_of_a_choice_that_has_ended_are_passed_over() -> None:
    def script(request: Request) -> list[Output]:
        return [Output(request.id, tuple(ids_of("a#"))), Output(request.id, tuple(ids_of("no")), finish_reason=STOP)]

    client = Client.replaying(script)
    client.engine.deliver_after_abort = True
    reply = client.complete(stop="#", n=2)
    assert [choice["text"] for choice in reply.json()["choices"]] == ["a", "a"]
    assert reply.json()["usage"]["completion_tokens"] == 4


@each_endpoint
def test_usage_so_far_in_every_chunk(endpoint: str) -> None:
    client = Client.replaying(replay(ids_of("abc"), ids_of("defg")))
    options = {"continuous_usage_stats": True}
    parameters = {"n": 2, "max_tokens": 10, "stream": True}
    events = client.generate(endpoint, **parameters, stream_options=options).events()
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 7
    whole = client.generate(endpoint, n=2, max_tokens=10).json()["usage"]
    assert events[-1]["usage"] == whole and events[-1]["choices"]
    last = client.generate(endpoint, **parameters, stream_options=options | {"include_usage": True}).events()[-1]
    assert (last["usage"], last["choices"]) == (whole, [])
