"""Requests made from both specifications get no 5xx and no undocumented answer, and leave no memory in use.

`make fuzz` makes 300 of each kind, and `make test` makes a few.
"""

import gc
import os
import random

import pytest

from octavo.engine.api import Output
from octavo.engine.api import Request as EngineRequest
from tests.fuzz.answers import check_answer
from tests.fuzz.memory import resident_bytes
from tests.fuzz.operations import Operation, Request, operations
from tests.server.client import Client
from tests.server.fake import SPARSE, FakeEngineClient, outputs_of

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
MOST_TOKENS = 64
KEPT_BYTES = 8 * 2**20  # by which the process may grow while it answers the same requests again
each_operation = pytest.mark.parametrize("operation", list(operations()), ids=str)


def rambling(request: EngineRequest) -> list[Output]:
    """Returns an answer of any ids, which may be broken UTF-8, special tokens or the end."""
    chance = random.Random(repr((request.prompt, request.params.choice)))
    return outputs_of(request, [chance.randrange(259) for _ in range(chance.randrange(1, 40))])


def fresh_client() -> Client:
    return Client(FakeEngineClient(rambling, SPARSE))


def call(client: Client, operation: Operation, request: Request) -> None:
    """Sends a request and, if it was answered as a whole, asks for the same as a stream."""
    if _call(client, operation, request) and operation.streams:
        _call(client, operation, request.streamed())


def _call(client: Client, operation: Operation, request: Request) -> bool:
    """Returns whether the answer came as a whole. Client.call validates it against OpenAI's types and specification."""
    reply = client.call(request.method, request.path, request.body, {"content_type": request.content_type})
    client.engine.submitted.clear()
    assert all(generation.closed for generation in client.engine.generations)
    client.engine.generations.clear()
    kind = reply.headers["content-type"]
    check_answer(operation, reply.status, kind, reply.body)
    return reply.status == 200 and kind == "application/json"


@each_operation
def test_nothing_undocumented(operation: Operation) -> None:
    client = fresh_client()
    for request in operation.requests(EXAMPLES, MOST_TOKENS):
        call(client, operation, request)
    assert client.complete().status == client.chat().status == 200


def test_nothing_is_kept() -> None:
    client = fresh_client()

    def answer_all() -> int:
        for operation in operations():
            for request in operation.requests(EXAMPLES, MOST_TOKENS):
                call(client, operation, request)
        gc.collect()
        return resident_bytes(os.getpid())

    answer_all()
    before = answer_all()
    assert answer_all() - before < KEPT_BYTES
