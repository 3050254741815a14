"""`return_routed_experts` tells which experts served each token, where SGLang's and vLLM's clients look for them."""

import base64
from dataclasses import replace
from struct import iter_unpack
from typing import Any

import pytest

from octavo.engine.api import ExpertControl, Output, Request, Routes
from tests.server.client import Client
from tests.server.fake import READY, SHAPE, SPARSE, FakeEngineClient, outputs_of, replay, routes_of
from tests.server.vocab import EOS, ids_of

each_stream = pytest.mark.parametrize("stream", [False, True])
Told = tuple[list[int], list[float]]


def client(*answers: str, **config: Any) -> Client:
    subject = Client.replaying(replay(*([*ids_of(answer), EOS] for answer in answers or ("abc",))), **config)
    subject.engine.state = SPARSE
    return subject


def decoded(holder: dict[str, Any]) -> Told:
    ids = base64.b64decode(holder["routed_experts"])
    weights = base64.b64decode(holder["routed_experts_weights"])
    return [id for (id,) in iter_unpack("<i", ids)], [weight for (weight,) in iter_unpack("<f", weights)]


def expected(start: int, end: int) -> Told:
    routes = routes_of(start, end)
    return decoded({"routed_experts": _text(routes.ids), "routed_experts_weights": _text(routes.weights)})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def told(subject: Client, endpoint: str, stream: bool, **parameters: Any) -> tuple[dict[int, Told], list[int]]:
    """Returns what each choice is told, and what SGLang's object has."""
    reply = subject.generate(endpoint, return_routed_experts=True, stream=stream, **parameters)
    assert reply.status == 200
    payloads = reply.events() if stream else [reply.json()]
    found: dict[int, Told] = {}
    for choice in (choice for payload in payloads for choice in payload["choices"] if "routed_experts" in choice):
        ids, weights = found.setdefault(choice["index"], ([], []))
        more = decoded(choice)
        assert more[0] or not stream, "a chunk without news has no fields"
        ids += more[0]
        weights += more[1]
    (extension,) = [payload["sglext"]["routed_experts"] for payload in payloads if "sglext" in payload]
    return found, [id for (id,) in iter_unpack("<i", base64.b64decode(extension))]


def prompts(subject: Client) -> list[int]:
    return [len(request.prompt) for request in subject.engine.submitted]


@each_stream
@pytest.mark.parametrize("endpoint", ["complete", "chat"])
def test_each_choice_tells_all_positions_but_its_last(endpoint: str, stream: bool) -> None:
    subject = client("abc", "de")
    found, extension = told(subject, endpoint, stream, n=2)
    prompt = prompts(subject)[0]
    assert found == {0: expected(0, prompt + 3), 1: expected(0, prompt + 2)}
    assert extension == expected(0, prompt + 3)[0]


@each_stream
@pytest.mark.parametrize("endpoint", ["complete", "chat"])
def test_a_beginning_may_be_left_out(endpoint: str, stream: bool) -> None:
    subject = client("abc")
    found, extension = told(subject, endpoint, stream, routed_experts_start_len=2)
    assert found == {0: expected(2, prompts(subject)[0] + 3)}
    assert extension == found[0][0]


@each_stream
def test_the_whole_prompt_may_be_left_out(stream: bool) -> None:
    subject = client("abc")
    subject.complete()
    (prompt,) = prompts(subject)
    found, _ = told(subject, "complete", stream, routed_experts_start_len=prompt)
    assert found == {0: expected(prompt, prompt + 3)}
    refused = subject.complete(return_routed_experts=True, stream=stream, routed_experts_start_len=prompt + 1)
    assert refused.status == 400 and f"at most the {prompt} tokens" in refused.error["message"]


@each_stream
def test_tokens_after_a_stop_string_have_no_experts(stream: bool) -> None:
    def merged(request: Request) -> list[Output]:
        """Returns an answer as a reader that was late finds it: in one piece."""
        ids = ids_of("ab#!cd")
        routes = routes_of(0, len(request.prompt) + len(ids) - 1)
        return [Output(request.id, tuple(ids), routes=routes), *outputs_of(request, [EOS])]

    subject = Client(FakeEngineClient(merged, SPARSE))
    found, _ = told(subject, "complete", stream, stop="#!")
    assert found == {0: expected(0, prompts(subject)[0] + 3)}


def test_held_text_holds_no_experts_back_for_good() -> None:
    subject = client("a##b")
    found, _ = told(subject, "complete", True, stop="###")
    assert found == {0: expected(0, prompts(subject)[0] + 4)}


def test_experts_that_are_told_early_wait_for_their_tokens() -> None:
    def early(request: Request) -> list[Output]:
        first, *others = outputs_of(request, [*ids_of("ab"), EOS])
        whole = routes_of(0, len(request.prompt) + 2)
        return [replace(first, routes=whole), *(replace(each, routes=None) for each in others)]

    subject = Client(FakeEngineClient(early, SPARSE))
    chunks = subject.complete(return_routed_experts=True, stream=True).events()
    counts = [len(decoded(chunk["choices"][0])[0]) // 4 for chunk in chunks if chunk["choices"]]
    assert counts == [prompts(subject)[0], 1, 1]


def test_calls_and_reasoning_lose_nothing() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    subject = client(text)
    subject.engine.state = replace(SPARSE, max_model_len=4096)  # The tools are part of the prompt.
    found, _ = told(subject, "chat", True, tools=tools)
    assert found == {0: expected(0, prompts(subject)[0] + len(ids_of(text)))}


@each_stream
def test_usage_and_experts_have_chunks_of_their_own(stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    found, _ = told(client(), "chat", stream, **options)
    assert found


def test_a_prompt_that_is_only_scored_is_told_wholly() -> None:
    subject = client()
    found, _ = told(subject, "complete", False, max_tokens=0, echo=True)
    assert found == {0: expected(0, prompts(subject)[0])}


def test_several_prompts_and_the_best_of_several() -> None:
    subject = client("abc", "de")
    found, _ = told(subject, "complete", False, prompt=["x", "yz"])
    first, second = prompts(subject)
    assert found == {0: expected(0, first + 3), 1: expected(0, second + 3)}
    subject = client("abc", "de")
    found, extension = told(subject, "complete", False, best_of=2)
    ends = [expected(0, prompts(subject)[0] + 3), expected(0, prompts(subject)[0] + 2)]
    assert found[0] in ends and extension == found[0][0]


@each_stream
def test_responses_tell_all_at_the_end(stream: bool) -> None:
    subject = client("abc")
    reply = subject.respond(return_routed_experts=True, stream=stream)
    answer = reply.named_events()[-1]["response"] if stream else reply.json()
    assert decoded(answer) == expected(0, prompts(subject)[0] + 3)
    assert "routed_experts" not in client().respond().json()


def test_nobody_is_told_who_has_not_asked() -> None:
    subject = client()
    assert "routed_experts" not in subject.complete().body.decode() + subject.chat(stream=True).body.decode()
    assert [request.params.routes_from for request in subject.engine.submitted] == [None, None]


@pytest.mark.parametrize("endpoint", ["complete", "chat"])
def test_what_cannot_be_told_is_refused(endpoint: str) -> None:
    dense = Client(FakeEngineClient(state=READY))
    refused = dense.generate(endpoint, return_routed_experts=True)
    assert (refused.status, refused.error["param"]) == (400, "return_routed_experts")
    assert "dense" in refused.error["message"]
    assert dense.generate(endpoint, return_routed_experts=False, routed_experts_start_len=0).status == 200
    subject = client()
    refused = subject.generate(endpoint, return_routed_experts=True, routed_experts_start_len=1000)
    assert (refused.status, refused.error["param"]) == (400, "routed_experts_start_len")
    assert dense.engine.submitted[1:] == subject.engine.submitted == []


def test_messages_have_no_place_for_experts() -> None:
    assert client().message(return_routed_experts=True).status == 400


CONTROLS = [
    ({"expert_mask": [[0, 1], [2, 3], [0, 1]]}, ExpertControl(masked=((0, 1), (2, 3)))),
    ({"expert_bias": [[0, 1, 2], [2, 0, -0.5], [0, 1, 3]]}, ExpertControl(biases=((0, 1, 3.0), (2, 0, -0.5)))),
    ({"expert_mask": [], "expert_bias": []}, None),
    ({}, None),
]


@pytest.mark.parametrize("endpoint", ["complete", "chat", "respond"])
@pytest.mark.parametrize(("fields", "control"), CONTROLS)
def test_control_reaches_the_engine(fields: dict[str, Any], control: ExpertControl | None, endpoint: str) -> None:
    subject = client(allow_expert_control=True)
    call = {"complete": subject.complete, "chat": subject.chat, "respond": subject.respond}[endpoint]
    assert call(**fields).status == 200
    assert subject.engine.submitted[0].params.experts == control


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"expert_mask": [[1, 0]]}, "Layer 1"),
    ({"expert_mask": [[0, 4]]}, "experts 0 to 3"),
    ({"expert_mask": [[0, -1]]}, "experts 0 to 3"),
    ({"expert_mask": [[0, 0], [0, 1], [0, 2], [2, 0]]}, "mask at most 2"),
    ({"expert_mask": [[0]]}, "pairs"),
    ({"expert_mask": [0, 1]}, "pairs"),
    ({"expert_bias": [[0, 1]]}, "triples"),
    ({"expert_bias": [[0.5, 1, 1]]}, "whole numbers"),
    ({"expert_bias": [[0, 1.5, 1]]}, "whole numbers"),
    ({"expert_bias": [[3, 1, 1]]}, "Layer 3"),
    ({"expert_bias": [[0, 1, 101]]}, "-100 to 100"),
    ({"expert_bias": [[0, 1, -101]]}, "-100 to 100"),
]


@pytest.mark.parametrize(("fields", "complaint"), REFUSED)
def test_control_that_means_nothing_is_refused(fields: dict[str, Any], complaint: str) -> None:
    subject = client(allow_expert_control=True)
    refused = subject.complete(**fields)
    assert (refused.status, refused.error["param"]) == (400, next(iter(fields)))
    assert complaint in refused.error["message"]
    assert subject.engine.submitted == []


def test_masking_may_leave_just_enough() -> None:
    assert client(allow_expert_control=True).complete(expert_mask=[[0, 0], [0, 1], [2, 2]]).status == 200


@pytest.mark.parametrize("fields", [{"expert_mask": [[0, 1]]}, {"expert_bias": [[0, 1, 1]]}])
def test_control_needs_a_flag_and_experts(fields: dict[str, Any]) -> None:
    refused = client().chat(**fields)
    assert refused.status == 400 and "--allow-expert-control" in refused.error["message"]
    dense = Client(FakeEngineClient(state=READY)).chat(**fields)
    assert dense.status == 400 and "dense" in dense.error["message"]


def test_the_shape_of_what_is_told() -> None:
    """The fake engine's routes have the shape that the real one's have."""
    routes = routes_of(3, 5)
    pairs = 2 * len(SHAPE.layers) * SHAPE.top_k
    assert (routes.start, routes.count, len(routes.ids), len(routes.weights)) == (3, 2, 4 * pairs, 4 * pairs)
    assert isinstance(routes, Routes)
