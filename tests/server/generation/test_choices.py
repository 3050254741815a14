"""The text, log-probabilities and usage of a Choice end together, wherever a stop string or a token ends them."""

import random
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Output, Request, SamplingParams, TokenLogprobs
from octavo.engine.process.collector import merge
from octavo.server.generation.choices import Choice, Delta, Display
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client
from tests.server.fake import STOP, Script, outputs_of, replay
from tests.server.openai.test_chat import streamed as chat_streamed
from tests.server.openai.test_completions import streamed
from tests.server.vocab import BOS, BYTES, EOS, PIECES, byte_level, ids_of, llama_style, piece

LENGTH = FinishReason.LENGTH
TOKENIZERS = {"byte level": byte_level(), "llama": llama_style()}


def choice(stops: tuple[str, ...] = (), tokenizer: Tokenizer = TOKENIZERS["byte level"]) -> Choice:
    params = SamplingParams(max_tokens=100, logprobs=0, stop_token_ids=(EOS,))
    return Choice(0, Request("r", tuple(ids_of("x")), params), tokenizer, Display(stops))


def output(ids: list[int], reason: FinishReason | None = None, cached: int = 0) -> Output:
    return Output("r", tuple(ids), tuple(TokenLogprobs(-float(id)) for id in ids), cached, reason)


def scored(delta: Delta | None) -> list[int]:
    assert delta is not None
    return [id for id, _ in delta.logprobs]


def test_tokens_after_the_stop_string_do_not_exist() -> None:
    subject = choice(("#!",))
    delta = subject.push(output(ids_of("ab#!cd"), LENGTH))
    assert delta is not None
    assert (delta.text, delta.finish_reason) == ("ab", STOP)
    assert scored(delta) == ids_of("ab#!")
    assert subject.completion_tokens == 4


def test_held_text_holds_its_log_probabilities() -> None:
    subject = choice(("###",))
    assert scored(subject.push(output(ids_of("a")))) == ids_of("a")
    assert subject.push(output(ids_of("#"))) is None
    assert scored(subject.push(output(ids_of("b")))) == ids_of("#b")


def test_what_was_held_is_shown_at_the_end() -> None:
    subject = choice(("###",))
    assert subject.push(output(ids_of("##"))) is None
    delta = subject.push(output(ids_of("é")[:1], LENGTH))
    assert delta is not None
    assert (delta.text, delta.finish_reason, subject.completion_tokens) == ("##\ufffd", LENGTH, 3)


def test_a_stop_string_that_only_the_end_reveals() -> None:
    subject = choice(("\ufffd",))
    delta = subject.push(output(ids_of("aé")[:2], LENGTH))
    assert delta is not None
    assert (delta.text, delta.finish_reason) == ("a", STOP)


def test_the_end_of_sequence_token_counts_but_is_no_text() -> None:
    subject = choice()
    delta = subject.push(output([*ids_of("a"), EOS], STOP))
    assert delta is not None
    assert (delta.text, delta.finish_reason, subject.completion_tokens) == ("a", STOP, 2)


def test_an_ordinary_token_that_ends_the_sequence_is_no_text_either() -> None:
    params = SamplingParams(max_tokens=100, stop_token_ids=(ids_of("!")[0],))
    subject = Choice(0, Request("r", tuple(ids_of("x")), params), TOKENIZERS["byte level"], Display())
    delta = subject.push(Output("r", tuple(ids_of("a!")), finish_reason=STOP))
    assert delta is not None and delta.text == "a"


def test_the_text_of_what_ended_the_choice_is_shown_where_it_is_wanted() -> None:
    client = Client.replaying(replay(ids_of("ab#cd")))
    ends: dict[str, dict[str, Any]] = {"ab#": {"stop": "b#"}, "ab#c": {"stop_token_ids": ids_of("c")}}
    for text, parameters in ends.items():
        reply = client.complete(**parameters, include_stop_str_in_output=True).json()
        assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == (text, "stop")
        assert reply["usage"]["completion_tokens"] == len(text)


def test_the_end_of_sequence_token_is_no_text_even_then() -> None:
    reply = Client.replaying(replay([*ids_of("ab"), EOS])).complete(include_stop_str_in_output=True)
    assert reply.json()["choices"][0]["text"] == "ab"


@pytest.mark.parametrize(("least", "text"), [(0, "a"), (1, "a"), (2, "a##b"), (3, "a##b"), (5, "a##b##")])
def test_nothing_ends_within_the_first_min_tokens(least: int, text: str) -> None:
    """A stop string counts if all of it comes after the first min_tokens tokens."""
    client = Client.replaying(replay(ids_of("a##b##")))
    assert client.complete(stop="##", min_tokens=least).json()["choices"][0]["text"] == text


def test_an_end_that_is_ignored_is_no_text() -> None:
    client = Client.replaying(replay([*ids_of("a"), EOS, *ids_of("b")]))
    reply = client.complete(ignore_eos=True, max_tokens=3).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("ab", "length")
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        ("<s>", "ab", 3),
        ("b<s>", "a", 3),
        ("<s>c", "ab", 4),
        ("b<s>c", "a", 4),
        (["<s>c", "bc"], "a", 4),
        ("</s>", "abcd", 5),
        ("d</s>", "abc", 6),
        ("<s></s>", "abcd", 5),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_text_of_a_special_token_in_a_stop_string(stop: Any, text: str, tokens: int, stream: bool) -> None:
    client = Client.replaying(replay([*ids_of("ab"), BOS, *ids_of("cd"), EOS, *ids_of("e")]))
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = client.complete(stop=stop, max_tokens=6 if "d<" in str(stop) else 5, **options)
    if stream:
        choices, usage = streamed(reply)[0], reply.events()[-1]["usage"]
    else:
        choices, usage = reply.json()["choices"][0], reply.json()["usage"]
    assert choices["text"] == text
    assert usage["completion_tokens"] == tokens
    assert choices["finish_reason"] == ("length" if text == "abcd" else "stop")


def test_a_special_token_that_ends_the_choice_is_shown_where_it_is_wanted() -> None:
    client = Client.replaying(replay([*ids_of("a\n"), EOS]))
    shown = {(False, "\n</s>"): "a", (True, "\n</s>"): "a\n</s>", (True, "</s>"): "a\n</s>", (True, "#"): "a\n"}
    for (include, stop), text in shown.items():
        reply = client.complete(stop=stop, include_stop_str_in_output=include).json()
        assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == (text, "stop")


def test_special_tokens_within_min_tokens_end_nothing() -> None:
    client = Client.replaying(replay([*ids_of("a"), BOS, *ids_of("b"), BOS, *ids_of("c")]))
    reply = client.complete(stop="<s>", min_tokens=2).json()
    assert (reply["choices"][0]["text"], reply["usage"]["completion_tokens"]) == ("ab", 4)


def test_the_stop_sequence_of_a_message_may_be_a_special_token() -> None:
    body = Client.replaying(replay([*ids_of("a"), BOS, *ids_of("b")])).message(stop_sequences=["<s>"]).json()
    assert (body["stop_reason"], body["stop_sequence"], body["content"][0]["text"]) == ("stop_sequence", "<s>", "a")


def test_cached_tokens_are_remembered() -> None:
    subject = choice()
    subject.push(output(ids_of("a"), cached=5))
    subject.push(output(ids_of("b"), LENGTH))
    assert subject.cached_tokens == 5


STOPS = ["#", "##", "a#b", " é", "你", "b \u2028", "🦑🦑"]


def at_random(rng: random.Random, name: str) -> list[int]:
    """Returns ids that make whole characters and stop strings, parts of characters, or nothing known."""
    text = [id for piece in rng.choices([*STOPS, "ab", "好", "😀"], k=rng.randrange(1, 8)) for id in ids_of(piece)]
    pieces = [piece(text) for text in PIECES] if name == "llama" else []
    noise = [*ids_of("ab# é你🦑\u2028"), BYTES + 0x80, BYTES + 0xE4, BYTES + 0xFF, BOS, *pieces]
    for _ in range(rng.randrange(12)):
        text.insert(rng.randrange(len(text) + 1), rng.choice(noise))
    return [*text, EOS]


def merging(rng: random.Random, *choices: list[int]) -> Script:
    """Replays the ids and merges some outputs at random, as happens for a reader that lags behind."""

    def script(request: Request) -> list[Output]:
        merged: list[Output] = []
        for output in outputs_of(request, choices[request.params.choice]):
            if merged and rng.random() < 0.4:
                merged[-1] = merge(merged[-1], output)
            else:
                merged.append(output)
        return merged

    return script


def length(ids: list[int], parameters: dict[str, Any]) -> int:
    """Counts the tokens of a choice up to the one that ends it, by the bytes of the byte-level vocabulary."""
    data = b""
    for count, id in enumerate(ids, 1):
        data += bytes([id - BYTES]) if id >= BYTES else b""
        if id == EOS or count == parameters["max_tokens"] or any(stop.encode() in data for stop in parameters["stop"]):
            return count
    raise AssertionError


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_stream_is_the_whole_cut_into_pieces(name: str) -> None:
    """Text, log-probabilities and usage of 102 sequences of ids are the same, byte for byte, however they arrive."""
    rng, tokenizer = random.Random(name), TOKENIZERS[name]
    for round in range(34):
        ids = [at_random(rng, name) for _ in range(3)]
        client = Client.replaying(merging(rng, *ids), tokenizer)
        parameters: dict[str, Any] = {
            "n": 3,
            "stop": rng.sample(STOPS, k=rng.randrange(4)),
            "max_tokens": rng.randrange(1, 50),
            "include_stop_str_in_output": round % 5 == 4,
        }
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        extras: dict[str, Any] = {"logprobs": 1, "echo": round % 2 == 1}
        completion = client.complete(**parameters, **extras).json()
        stream = client.complete(**parameters, **extras, **streaming)
        chat = client.chat(**parameters, logprobs=True).json()
        chat_stream = client.chat(**parameters, logprobs=True, **streaming)
        chunks, messages = streamed(stream), chat_streamed(chat_stream)
        assert [chunks[index] for index in range(3)] == completion["choices"]
        assert [messages[index] for index in range(3)] == chat["choices"]
        assert stream.events()[-1]["usage"] == completion["usage"]
        assert chat_stream.events()[-1]["usage"] == chat["usage"]
        _is_counted_exactly(client, completion, chat)
        if name == "byte level":
            assert completion["usage"]["completion_tokens"] == sum(length(each, parameters) for each in ids)
        if not parameters["include_stop_str_in_output"]:
            texts = [choice["message"]["content"] for choice in chat["choices"]]
            assert not any(stop in text for stop in parameters["stop"] for text in texts)


def _is_counted_exactly(client: Client, completion: Any, chat: Any) -> None:
    """Checks that a prompt counts once, and that exactly the reported tokens of a choice count."""
    first, _, _, _, _, _, third, *_ = client.engine.submitted
    assert completion["usage"]["prompt_tokens"] == len(first.prompt) == len(client.tokenizer.encode("hi", True))
    assert chat["usage"]["prompt_tokens"] == len(third.prompt)
    echoed = 3 * len(first.prompt) * (first.params.prompt_logprobs is not None)
    reported = sum(len(choice["logprobs"]["tokens"]) for choice in completion["choices"]) - echoed
    assert reported == completion["usage"]["completion_tokens"] == chat["usage"]["completion_tokens"]
    assert reported == sum(len(choice["logprobs"]["content"]) for choice in chat["choices"])


def test_a_stop_string_ends_the_work_of_the_engine() -> None:
    client = Client.replaying(replay(ids_of("a#" + "b" * 100), ids_of("ccc")))
    reply = client.complete(n=2, stop="#", max_tokens=3)
    assert [each["finish_reason"] for each in reply.json()["choices"]] == ["stop", "length"]
    assert client.engine.aborted == [client.engine.submitted[0].id]
    assert reply.json()["usage"]["completion_tokens"] == 2 + 3
