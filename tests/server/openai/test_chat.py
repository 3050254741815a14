"""Tests /v1/chat/completions: messages of every form, the chunks that clients rely on, log-probabilities with bytes."""

from typing import Any

import pytest

from tests.server.client import MODEL, Client, Reply
from tests.server.fake import replay
from tests.server.vocab import BOS, EOS, byte_level, ids_of

HELLO = [*ids_of("héllo 🦑"), EOS]


def streamed(reply: Reply) -> dict[int, dict[str, Any]]:
    """Returns what the chunks add up to, in the form of the whole response."""
    whole: dict[int, dict[str, Any]] = {}
    for event in reply.events():
        for part in event["choices"]:
            choice = whole.setdefault(part["index"], {"index": part["index"], "logprobs": None, "finish_reason": None})
            message = choice.setdefault("message", {"content": "", "refusal": None})
            message["content"] += part["delta"].get("content", "")
            message |= {key: value for key, value in part["delta"].items() if key == "role"}
            choice["finish_reason"] = part["finish_reason"]
            if part["logprobs"] is not None:
                before = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"] = before | {"content": before["content"] + part["logprobs"]["content"]}
    return whole


def test_messages_go_through_the_template_without_a_second_bos() -> None:
    client = Client(tokenizer=byte_level("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"))
    client.chat()
    assert client.engine.submitted[0].prompt == (BOS, *ids_of("hi"))


WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
WITHOUT_BOS = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "wanted", "begins"),
    [
        (WITH_BOS, None, True),
        (WITH_BOS, False, True),
        (WITH_BOS, True, True),
        (WITHOUT_BOS, None, False),
        (WITHOUT_BOS, False, False),
        (WITHOUT_BOS, True, True),
    ],
)
@pytest.mark.parametrize("parsed", [False, True])
def test_special_tokens_are_added_where_they_are_wanted_and_once(
    template: str, wanted: bool | None, begins: bool, parsed: bool
) -> None:
    client = Client.replaying(replay([EOS]), byte_level(template), parse_special_tokens=parsed)
    expected = (*((BOS,) if begins else ()), *ids_of("hi"))
    client.chat(add_special_tokens=wanted)
    client.respond(add_special_tokens=wanted)
    client.message(add_special_tokens=wanted)
    assert {request.prompt for request in client.engine.submitted} == {expected}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "add_special_tokens": wanted}
    assert client.post("/tokenize", body).json()["tokens"] == list(expected)
    assert client.post("/v1/messages/count_tokens", body).json() == {"input_tokens": len(expected)}
    assert client.chat(add_special_tokens=1).error["param"] == "add_special_tokens"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}], "<user>a</s>"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "<user>ab</s>"),
        ([{"role": "developer", "content": "s"}, {"role": "user", "content": ""}], "<system>s</s><user></s>"),
        ([{"role": "assistant", "content": "a", "refusal": None, "tool_calls": [], "name": "x"}], "<assistant>a</s>"),
    ],
)
def test_messages(messages: list[Any], text: str) -> None:
    client = Client()
    assert client.chat(messages=messages).status == 200
    expected = byte_level().encode(text + "<assistant>", add_special_tokens=False)
    assert client.engine.submitted[0].prompt == expected


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages.0"),
        ([{"content": "a"}], "messages.0.role"),
        ([{"role": "wizard", "content": "a"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages.0.content"),
        ([{"role": "user", "content": ["a"]}], "messages.0.content"),
    ],
)
def test_bad_messages(messages: Any, param: str) -> None:
    client = Client()
    reply = client.chat(messages=messages)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert client.engine.submitted == []


def test_no_chat_template() -> None:
    reply = Client(tokenizer=byte_level(template=None)).chat()
    assert reply.status == 400 and "no chat template" in reply.error["message"]


def test_a_template_that_refuses() -> None:
    reply = Client(tokenizer=byte_level("{{ raise_exception('never!') }}")).chat()
    assert reply.status == 400 and "never!" in reply.error["message"]


def test_the_default_of_max_tokens_is_the_rest_of_the_context() -> None:
    client = Client()
    client.chat()
    request = client.engine.submitted[0]
    assert request.params.max_tokens == 256 - len(request.prompt)


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    for parameters in ({"max_tokens": 255}, {"messages": [{"role": "user", "content": "x" * 300}]}):
        reply = Client().chat(**parameters)
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        assert "256" in reply.error["message"]


def test_chunks_add_up_to_the_whole() -> None:
    client = Client.replaying(replay(HELLO, ids_of("two"), [EOS]))
    parameters: dict[str, Any] = {"n": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.chat(**parameters).json()["choices"]
    parts = streamed(client.chat(**parameters, stream=True))
    assert [parts[index] for index in range(3)] == whole
    assert [choice["message"]["content"] for choice in whole] == ["héllo 🦑", "two", ""]
    assert [choice["finish_reason"] for choice in whole] == ["stop", "length", "stop"]


def test_logprobs_with_the_true_bytes_of_a_split_character() -> None:
    reply = Client.replaying(replay([*ids_of("é"), EOS])).chat(logprobs=True, top_logprobs=1)
    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], list(b"</s>")]
    assert [entry["token"] for entry in content] == ["\\xc3", "\\xa9", "</s>"]
    assert content[0]["top_logprobs"] == [{"token": "\\xc4", "logprob": -0.5, "bytes": [0xC4]}]


def test_usage_in_a_stream_only_when_asked_for() -> None:
    client = Client.replaying(replay(HELLO, cached=3))
    silent = client.chat(stream=True).events()
    assert all("usage" not in event and event["choices"] for event in silent)
    asked = client.chat(stream=True, stream_options={"include_usage": True}).events()
    assert all(event["usage"] is None for event in asked[:-1])
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == client.chat().json()["usage"]
    assert asked[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_the_last_chunk_of_a_choice_has_only_the_finish_reason() -> None:
    for answer, reason in (([*ids_of("ab"), EOS], "stop"), (ids_of("ab"), "length"), ([EOS], "stop")):
        for logprobs in (False, True):
            events = Client.replaying(replay(answer)).chat(stream=True, logprobs=logprobs).events()
            last = events[-1]["choices"][0]
            assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
            assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
            told = [
                entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": ()})["content"]
            ]
            assert len(told) == (len(answer) if logprobs else 0)


@pytest.mark.parametrize("n", [1, 3])
def test_usage_in_every_chunk_begins_at_nothing(n: int) -> None:
    client = Client.replaying(replay(HELLO, cached=3))
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = client.chat(stream=True, n=n, stream_options=options).events()
    prompt = len(client.engine.submitted[0].prompt)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[:n] == [0] * n and counts[n] >= 1 and counts[-1] == n * len(HELLO)
    assert [event["choices"][0]["delta"].get("role") for event in events[: n + 1]] == ["assistant"] * n + [None]
    assert all(event["usage"]["total_tokens"] == prompt + count for event, count in zip(events, counts, strict=True))


def test_usage_in_every_chunk_is_silent_where_no_usage_is_wanted() -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    for endpoint in ("complete", "chat"):
        events = Client().generate(endpoint, stream=True, stream_options=options).events()
        assert all("usage" not in event for event in events)


def test_include_usage_may_be_off() -> None:
    for options in ({}, {"include_usage": False}, {"include_usage": None}, {"include_obfuscation": False}):
        events = Client().chat(stream=True, stream_options=options).events()
        assert all("usage" not in event for event in events)


def test_apply_template_shows_the_prompt() -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "stream": True}
    client = Client()
    assert client.post("/apply-template", body).json() == {"prompt": "<user>hi</s><assistant>"}
    assert client.post("/apply-template", body | {"messages": []}).status == 400
    assert client.engine.submitted == []


def test_the_response_names_its_model() -> None:
    body = Client().chat().json()
    assert body["model"] == MODEL and body["id"].startswith("chatcmpl-")


def test_the_log_probabilities_of_the_prompt_stand_beside_the_choices() -> None:
    client = Client()
    reply = client.chat(prompt_logprobs=1, n=2).json()
    assert reply["prompt_logprobs"][0] is None
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert [request.params.prompt_logprobs for request in client.engine.submitted] == [1, None]
    assert "prompt_logprobs" not in client.chat().json()
