"""Tests /v1/completions: prompts of every form, usage, log-probabilities, and chunks that add up to the whole."""

from typing import Any

import pytest
from tokenizers import processors

from octavo.engine.api import Output, Request, TokenLogprobs
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import MODEL, Client, Reply
from tests.server.fake import LENGTH, replay
from tests.server.vocab import BOS, EOS, byte_level, ids_of

HELLO = [*ids_of("héllo 你"), EOS]


def streamed(reply: Reply) -> dict[int, dict[str, Any]]:
    """Returns what the chunks add up to, in the form of the whole response."""
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
    [
        [],
        [[]],
        [[65], []],
        [None],
        ["a", None],
        5,
        {"a": 1},
        [65, "a"],
        [True],
        [1.5],
        [[65], "a"],
        [-1],
        [259],
        [2**70],
        [[10**30]],
    ],
)
def test_bad_prompts(prompt: Any) -> None:
    client = Client()
    reply = client.complete(prompt=prompt)
    assert (reply.status, reply.error["param"]) == (400, "prompt")
    assert client.engine.submitted == []


def test_null_is_the_beginning_of_a_document() -> None:
    client = Client()
    assert client.complete(prompt=None).status == 200
    assert client.engine.submitted[0].prompt == (BOS,)
    assert client.complete(prompt=None, echo=True, max_tokens=0).json()["choices"][0]["text"] == "<s>"


def test_null_where_no_token_begins_a_text() -> None:
    plain, separated = byte_level(), byte_level()
    for tokenizer in (plain, separated):
        tokenizer.backend.post_processor = processors.TemplateProcessing(single="$A")
    separated.backend.add_special_tokens(["<|endoftext|>"])
    separated = Tokenizer(separated.backend)
    for tokenizer, id in ((plain, EOS), (separated, separated.vocab_size - 1)):
        client = Client(tokenizer=tokenizer)
        assert client.complete(prompt=None).status == 200
        assert client.engine.submitted[0].prompt == (id,)


def test_special_tokens_are_added_unless_they_are_not_wanted() -> None:
    client = Client()
    for wanted, prompt in ((None, (BOS, *ids_of("a"))), (True, (BOS, *ids_of("a"))), (False, tuple(ids_of("a")))):
        assert client.complete(prompt=["a", "a"], add_special_tokens=wanted).status == 200
        assert [request.prompt for request in client.engine.submitted[-2:]] == [prompt, prompt]
    assert client.complete(prompt=[65], add_special_tokens=True).status == 200
    assert client.engine.submitted[-1].prompt == (65,)
    refused = client.complete(add_special_tokens="no")
    assert (refused.status, refused.error["param"], refused.error["code"]) == (
        400,
        "add_special_tokens",
        "invalid_type",
    )


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
    assert logprobs["top_logprobs"][0] == {"b": -0.5, "a": -0.75}  # the likeliest token and the sampled one


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
    assert all(event["usage"] is None for event in asked[:-1])


def test_the_last_chunk_of_a_choice_has_only_the_finish_reason() -> None:
    for answer, reason in (([*ids_of("ab"), EOS], "stop"), (ids_of("ab"), "length"), ([EOS], "stop")):
        for logprobs in (None, 1):
            events = Client.replaying(replay(answer)).complete(stream=True, logprobs=logprobs).events()
            assert events[-1]["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": reason}]
            assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])


def test_a_model_without_a_chat_template_still_completes() -> None:
    assert Client(tokenizer=byte_level(template=None)).complete().status == 200


def test_echo_begins_with_the_prompt_as_it_was_sent() -> None:
    client = Client.replaying(replay(ids_of("lo")))
    reply = client.complete(prompt="<s> hél", echo=True, n=2, max_tokens=2)
    assert [choice["text"] for choice in reply.json()["choices"]] == ["<s> héllo", "<s> héllo"]
    assert reply.json()["choices"][0]["logprobs"] is None


def test_the_echo_of_ids_has_the_text_of_special_tokens() -> None:
    client = Client.replaying(replay(ids_of("lo")))
    choice = client.complete(prompt=[BOS, *ids_of("hel"), EOS], echo=True, logprobs=0, max_tokens=2).json()["choices"][
        0
    ]
    assert choice["text"] == "<s>hel</s>lo" == "".join(choice["logprobs"]["tokens"])
    cut = client.complete(prompt="ab</s>c", echo=True, truncate_prompt_tokens=2, max_tokens=2).json()["choices"][0]
    assert cut["text"] == "</s>clo"


def test_echo_with_the_log_probabilities_of_the_prompt() -> None:
    client = Client.replaying(replay(ids_of("c")))
    logprobs = client.complete(prompt="ab", echo=True, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["<s>", "a", "b", "c"]
    assert logprobs["token_logprobs"] == [None, -0.75, -0.75, -0.75]
    assert logprobs["top_logprobs"][:2] == [None, {"b": -0.5, "a": -0.75}]
    assert logprobs["text_offset"] == [0, 3, 4, 5]


@pytest.mark.parametrize("prompt", ["ab", [65], [BOS], "", [[65, 66], [67]]])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("stop", [None, "c", "cd"])
def test_an_echo_that_is_streamed_adds_up_to_the_whole(prompt: Any, max_tokens: int, stop: str | None) -> None:
    client = Client.replaying(replay(ids_of("ccd")))
    parameters = {"prompt": prompt, "echo": True, "logprobs": 1, "n": 2, "max_tokens": max_tokens, "stop": stop}
    whole = client.complete(**parameters).json()["choices"]
    parts = streamed(client.complete(**parameters, stream=True))
    assert [parts[index] for index in range(len(whole))] == whole
    assert all(choice["logprobs"]["token_logprobs"].count(None) == 1 for choice in whole)


def test_nothing_is_generated_where_nothing_is_wanted() -> None:
    """Harnesses score a text with echo, logprobs and max_tokens 0."""
    client = Client()
    reply = client.complete(prompt=[65] * 256, echo=True, logprobs=0, max_tokens=0).json()
    choice = reply["choices"][0]
    assert (choice["finish_reason"], len(choice["logprobs"]["tokens"])) == ("length", 256)
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (256, 0)
    plain = client.complete(max_tokens=0, logprobs=2).json()["choices"][0]
    assert (plain["text"], plain["finish_reason"], plain["logprobs"]["tokens"]) == ("", "length", [])


def test_the_echo_is_not_searched_for_stop_strings() -> None:
    reply = Client.replaying(replay(ids_of("x#y"))).complete(prompt="a#b", echo=True, stop="#")
    assert reply.json()["choices"][0]["text"] == "a#bx"


def test_the_log_probabilities_of_a_prompt_in_the_form_of_vllm() -> None:
    client = Client.replaying(replay(ids_of("c")))
    reply = client.complete(prompt=[[65], [70, 71]], prompt_logprobs=1, n=2, echo=True, logprobs=0).json()
    single, _, first, second = (choice["prompt_logprobs"] for choice in reply["choices"])
    assert single == [None]
    assert (
        first
        == second
        == [
            None,
            {
                "71": {"logprob": -0.75, "rank": 2, "decoded_token": "D"},
                "72": {"logprob": -0.5, "rank": 1, "decoded_token": "E"},
            },
        ]
    )
    assert reply["choices"][2]["logprobs"]["top_logprobs"] == [None, {"D": -0.75}, {"c": -0.25}]


def test_the_log_probabilities_of_a_prompt_are_computed_once_for_all_choices() -> None:
    client = Client()
    client.complete(prompt_logprobs=3, n=3)
    assert [request.params.prompt_logprobs for request in client.engine.submitted] == [3, None, None]


def scripted(*logprobs: float) -> Client:
    """Makes the k-th candidate say its letter twice, with such log-probabilities."""

    def script(request: Request) -> list[Output]:
        assert request.params.logprobs is not None
        k = request.params.choice
        entry = TokenLogprobs(logprobs[k])
        return [Output(request.id, (ids_of("abcdef")[k],) * 2, (entry, entry), finish_reason=LENGTH)]

    return Client.replaying(script)


def test_best_of_returns_the_likeliest_and_counts_all() -> None:
    client = scripted(-2.0, -0.5, float("-inf"), -1.0)
    reply = client.complete(best_of=4, n=2, prompt=["x", "yz"]).json()
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [
        (0, "bb"),
        (1, "dd"),
        (2, "bb"),
        (3, "dd"),
    ]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2 + 3, 2 * 4 * 2)


def test_best_of_with_echo_ranks_what_was_generated() -> None:
    reply = scripted(-2.0, -0.5).complete(best_of=2, echo=True, prompt="x").json()
    assert [choice["text"] for choice in reply["choices"]] == ["xbb"]


def test_best_of_that_equals_n_is_n() -> None:
    client = Client.replaying(replay(ids_of("x"), ids_of("y")))
    parts = streamed(client.complete(best_of=2, n=2, stream=True))
    assert [parts[index]["text"] for index in range(2)] == ["x", "y"]
    assert client.engine.submitted[0].params.logprobs is None


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"best_of": 0}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"suffix": " the end"}, "suffix"),
        ({"suffix": 5}, "suffix"),
        ({"max_tokens": 0, "min_tokens": 1}, "min_tokens"),
    ],
)
def test_bad_values_of_completions_alone(parameters: dict[str, Any], param: str) -> None:
    client = Client()
    reply = client.complete(**parameters)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert client.engine.submitted == []


@pytest.mark.parametrize("prompt", [[], [[]], ["hi", ""], [[3], []]])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    tokenizer = byte_level()
    tokenizer.backend.post_processor = processors.TemplateProcessing(single="$A")  # without a BOS
    reply = Client(tokenizer=tokenizer).complete(prompt=prompt)
    assert (reply.status, reply.error["param"]) == (400, "prompt")
    assert reply.error["code"] == ("invalid_value" if "" in prompt else "empty_array")


def test_prompts_are_encoded_up_to_the_first_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = Tokenizer.encode

    def noting(self: Tokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        encoded.append(text)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    reply = Client().complete(prompt=["hi", "x" * 300, "ho"])
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert encoded == ["hi", "x" * 300]


def test_an_empty_suffix_is_absent() -> None:
    assert Client().complete(suffix="").status == 200
