"""Tests that log-probabilities are finite, and that the sampled token is always among them."""

import json
import math

from octavo.engine.api import TokenLogprobs
from octavo.server.http.wire import encode_json
from octavo.server.openai.logprobs import LOWEST, chat_logprobs, completion_logprobs
from tests.server.vocab import byte_level, ids_of

TOKENIZER = byte_level()
A, B, C = ids_of("abc")


def test_infinities_become_a_number() -> None:
    scored = [(A, TokenLogprobs(-math.inf, ((B, -math.inf), (C, math.nan))))]
    completion, _ = completion_logprobs(TOKENIZER, scored, 0)
    chat = chat_logprobs(TOKENIZER, scored)
    assert completion["token_logprobs"] == [LOWEST]
    assert completion["top_logprobs"] == [{"b": LOWEST, "c": LOWEST, "a": LOWEST}]
    assert [entry["logprob"] for entry in chat["content"][0]["top_logprobs"]] == [LOWEST, LOWEST]
    assert json.loads(encode_json(completion)) and json.loads(encode_json(chat))


def test_the_sampled_token_is_not_listed_twice() -> None:
    logprobs, _ = completion_logprobs(TOKENIZER, [(A, TokenLogprobs(-0.1, ((A, -0.1), (B, -2.0))))], 0)
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -2.0}]


def test_offsets_go_on_where_the_last_chunk_ended() -> None:
    scored = [(id, TokenLogprobs(-1.0)) for id in (A, B)]
    first, end = completion_logprobs(TOKENIZER, scored, 0)
    second, _ = completion_logprobs(TOKENIZER, scored, end)
    assert first["text_offset"] + second["text_offset"] == [0, 1, 2, 3]
