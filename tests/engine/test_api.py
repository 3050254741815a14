"""Tests what a request costs on its way between the processes."""

import pickle
from array import array

from octavo.engine.api import Request, SamplingParams


def test_a_prompt_travels_as_an_array_of_four_bytes_a_token():
    prompt = tuple(range(100_000, 132_000))
    sent = Request("a", prompt, SamplingParams(5, seed=7), "salt")
    message = pickle.dumps(sent)
    assert len(message) < 4 * len(prompt) + 1000
    received = pickle.loads(message)
    assert received.prompt == array("i", prompt)
    assert (received.id, received.params, received.cache_salt) == (sent.id, sent.params, sent.cache_salt)
