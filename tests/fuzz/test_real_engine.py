"""Sends a tenth of these requests to the real engine with a tiny model, over real sockets."""

import os
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.harness import PATIENCE, Server, children_of, started, write_model
from tests.fuzz.answers import check_answer
from tests.fuzz.memory import resident_bytes
from tests.fuzz.operations import Operation, Request, operations
from tests.server.client import MODEL

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10")) // 10
MOST_TOKENS = 4
KEPT_BYTES = 32 * 2**20  # by which the processes may grow while they answer the same requests again
FLAGS = ("--served-model-name", MODEL, "--kv-cache-memory", "4MiB", "--max-model-len", "256", "--threads", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("fuzz")
    model = write_model(directory / "model")
    command = ["-m", "octavo", "serve", model, *FLAGS, "--max-num-batched-tokens", "64"]
    with started(command, directory) as server:
        server.wait_for_health(200)
        yield server
        assert "Traceback" not in server.output


def call(client: httpx.Client, operation: Operation, request: Request) -> None:
    if _call(client, operation, request) and operation.streams:
        _call(client, operation, request.streamed())


def _call(client: httpx.Client, operation: Operation, request: Request) -> bool:
    headers = {"content-type": request.content_type}
    path = quote(request.path, safe="/")
    response = client.request(request.method, path, content=request.body, headers=headers)
    kind = response.headers["content-type"]
    check_answer(operation, response.status_code, kind, response.content)
    return response.status_code == 200 and kind == "application/json"


def test_nothing_undocumented_and_nothing_kept(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:

        def answer_all() -> int:
            for operation in operations():
                for request in operation.requests(EXAMPLES, MOST_TOKENS):
                    call(client, operation, request)
            return sum(resident_bytes(pid) for pid in (server.process.pid, *children_of(server.process.pid)))

        before = answer_all()
        assert answer_all() - before < KEPT_BYTES
        assert client.get("/health").status_code == 200
    server.wait_for_load(running=0)
