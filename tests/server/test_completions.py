"""/v1/completions: prompts of every form, usage, log-probabilities, and chunks that add up to the whole."""

from typing import Any

import pytest

from tests.server.client import MODEL, Client, Reply
from tests.server.fake import replay
from tests.server.vocab import BOS, EOS, byte_level, ids_of

HELLO = [*ids_of("héllo 你"), EOS]


def streamed(reply: Reply) -> dict[int, dict[str, Any]]:
    """What the chunks of each choice add up to, in the shape of the whole response."""
    whole: dict[int, dict[str, Any]] = {}
    for event in reply.events():
        for choice in event["choices"]:
            found = whole.setdefault(choice["index"], {"index": choice["index"], "text": "", "logprobs": None})
            found["text"] += choice["text"]
            found["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                before = found["logprobs"] or {key: [] for key in choice["logprobs"]}
                found["logprobs"] = {key: before[key] + value for key, value in choice["logprobs"].items()}
    return whole


@pytest.mark.parametrize(
    ("prompt", "encoded"),
    [
        ("hi", [(BOS, *ids_of("hi"))]),
        ("", [(BOS,)]),
        ([65, 66], [(65, 66)]),
        (["a", "b"], [(BOS, *ids_of("a")), (BOS, *ids_of("b"))]),
        ([[65], [66, 67]], [(65,), (66, 67)]),
    ],
)
def test_prompts_as_text_and_as_ids(prompt: Any, encoded: list[tuple[int, ...]]) -> None:
    client = Client()
    reply = client.complete(prompt=prompt)
    assert [request.prompt for request in client.engine.submitted] == encoded
    assert [choice["index"] for choice in reply.json()["choices"]] == list(range(len(encoded)))
    assert reply.json()["usage"]["prompt_tokens"] == sum(map(len, encoded))


@pytest.mark.parametrize(
    "prompt",
    [None, [], [[]], [[65], []], 5, {"a": 1}, [65, "a"], [True], [1.5], [[65], "a"], [-1], [259], [2**70], [[10**30]]],
)
def test_bad_prompts(prompt: Any) -> None:
    client = Client()
    reply = client.complete(prompt=prompt)
    assert (reply.status, reply.error["param"]) == (400, "prompt")
    assert client.engine.submitted == []


def test_no_prompt() -> None:
    reply = Client().post("/v1/completions", {"model": MODEL})
    assert (reply.status, reply.error["param"]) == (400, "prompt")


def test_several_prompts_times_n() -> None:
    client = Client.replaying(replay(ids_of("x"), ids_of("y"), cached=1))
    reply = client.complete(prompt=["a", "b"], n=2)
    assert [choice["text"] for choice in reply.json()["choices"]] == ["x", "y", "x", "y"]
    assert [request.params.choice for request in client.engine.submitted] == [0, 1, 0, 1]
    usage = reply.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 4, 8)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_the_default_of_max_tokens() -> None:
    client = Client.replaying(replay(ids_of("x" * 40)))
    choice = client.complete().json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


def test_a_prompt_that_leaves_less_than_the_default() -> None:
    client = Client()
    client.complete(prompt=[65] * 250)
    assert client.engine.submitted[0].params.max_tokens == 6


@pytest.mark.parametrize(("prompt", "max_tokens"), [(256, None), (300, None), (250, 7), (1, 256), (10, 10**12)])
def test_what_cannot_fit_is_refused_with_the_numbers(prompt: int, max_tokens: int | None) -> None:
    reply = Client().complete(prompt=[65] * prompt, max_tokens=max_tokens)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert all(str(number) in reply.error["message"] for number in (256, prompt, max_tokens or 1))


def test_what_just_fits() -> None:
    assert Client().complete(prompt=[65] * 250, max_tokens=6).status == 200


def test_chunks_add_up_to_the_whole() -> None:
    client = Client.replaying(replay(HELLO, ids_of("two"), ids_of("\u2028 three")))
    parameters: dict[str, Any] = {"n": 3, "logprobs": 2, "max_tokens": 30}
    whole = client.complete(**parameters).json()["choices"]
    parts = streamed(client.complete(**parameters, stream=True))
    assert [parts[index] for index in range(3)] == whole
    assert [choice["text"] for choice in whole] == ["héllo 你", "two", "\u2028 three"]


def test_logprobs_are_four_parallel_arrays() -> None:
    choice = Client.replaying(replay([*ids_of("aé"), EOS])).complete(logprobs=1).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "</s>"]
    assert logprobs["text_offset"] == [0, 1, 11, 21]
    assert logprobs["token_logprobs"] == [-0.75] * 4
    assert logprobs["top_logprobs"][0] == {"b": -0.5, "a": -0.75}  # k and the sampled one


def test_logprobs_0_is_the_sampled_token_alone() -> None:
    logprobs = Client.replaying(replay(ids_of("a"))).complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"a": -0.25}]


def test_usage_in_a_stream_only_when_asked_for() -> None:
    client = Client.replaying(replay(HELLO))
    silent = client.complete(stream=True).events()
    assert all("usage" not in event and event["choices"] for event in silent)
    asked = client.complete(stream=True, stream_options={"include_usage": True}).events()
    whole = client.complete().json()["usage"]
    assert asked[-1]["choices"] == [] and asked[-1]["usage"] == whole
    assert len(asked) == len(silent) + 1


def test_a_model_without_a_chat_template_still_completes() -> None:
    assert Client(tokenizer=byte_level(template=None)).complete().status == 200
