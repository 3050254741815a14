"""Rough requests get no 5xx and no undocumented answer, whatever the form of the chat template."""

import os
from dataclasses import replace

import pytest

from tests.fuzz.answers import check_answer
from tests.fuzz.rough import TEMPLATES, rough
from tests.fuzz.test_fuzz import rambling
from tests.server.client import MODEL, Client
from tests.server.fake import READY
from tests.server.vocab import byte_level

EXAMPLES = 20 * int(os.environ.get("FUZZ_EXAMPLES", "5"))
MOST_TOKENS = 32


@pytest.mark.parametrize("name", TEMPLATES)
def test_rough_requests(name: str) -> None:
    client = Client.replaying(rambling, byte_level(TEMPLATES[name]))
    client.engine.state = replace(READY, max_model_len=4096)
    for number in range(EXAMPLES):
        request = rough(number, MODEL, MOST_TOKENS)
        reply = client.call("POST", request.path, request.body, request.headers)
        check_answer(request.operation, reply.status, reply.headers["content-type"], reply.body)
        assert all(generation.closed for generation in client.engine.generations), number
        client.engine.generations.clear()
        client.engine.submitted.clear()
