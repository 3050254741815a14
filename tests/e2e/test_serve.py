"""`octavo serve` serves a real, tiny checkpoint, from the first line of its output to its exit status."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import PATIENCE, Server, children_of, started, write_model
from tests.server.openai.openai_spec import validate, validate_stream

FLAGS = ("--kv-cache-memory", "4MiB", "--max-num-batched-tokens", "64", "--threads", "1", "--api-key", "secret")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("serve")
    model = write_model(directory / "tiny")
    environment = {"OCTAVO_MAX_MODEL_LEN": "256", "OCTAVO_THREADS": "2"}
    with started(["-m", "octavo", "serve", model, *FLAGS], directory, environment) as server:
        server.wait_for_health(200)
        yield server
        server.send_signal(signal.SIGTERM)
        assert server.exit_status() == 0
        server.wait_until_nothing_is_left()
        assert "Traceback" not in server.output


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer secret"}, timeout=PATIENCE) as client:
        yield client


def test_chat_is_streamed(client: httpx.Client) -> None:
    body = {"model": "tiny", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = list(response.iter_lines())
    validate_stream("/v1/chat/completions", lines)
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[0])["choices"][0]["delta"]["role"] == "assistant"
    assert json.loads(data[-2])["choices"][0]["finish_reason"] in {"stop", "length"}


def test_flags_and_environment_reach_the_engine(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": list(range(3, 253)), "max_tokens": 7}
    response = client.post("/v1/completions", json=body)
    validate("/v1/completions", "POST", 400, response.content)
    assert response.status_code == 400
    assert "256" in response.json()["error"]["message"]
    assert httpx.get(f"{client.base_url}/v1/models").status_code == 401


def test_the_output_says_what_is_served_and_how_to_try_it(server: Server) -> None:
    lines = server.output.splitlines()
    assert f"listening on {server.url}" in lines[0]
    assert any("KV cache of" in line for line in lines)
    assert (
        f"tiny is served on {server.url}/v1; open {server.url} in a browser, or try, with an API key" in server.output
    )
    assert f"curl -N {server.url}/v1/chat/completions" in server.output
    assert "secret" not in server.output


def test_torch_is_in_the_engine_process_alone(server: Server) -> None:
    def maps(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    children = children_of(server.process.pid)
    (engine,) = [pid for pid in children if "libtorch" in maps(pid)]
    assert "libtorch" not in maps(server.process.pid)
    environment = Path(f"/proc/{engine}/environ").read_bytes()
    assert b"OMP_WAIT_POLICY=" in environment and b"GOMP_SPINCOUNT=" in environment


def test_it_serves_without_a_stderr(tmp_path: Path) -> None:
    """Whoever starts a server may have closed it."""
    model = write_model(tmp_path / "model")
    code = (
        "import os, sys; os.close(2);os.execv(sys.executable, [sys.executable, '-m', 'octavo', 'serve', *sys.argv[1:]])"
    )
    with started(["-c", code, model, "--kv-cache-memory", "1MiB"], tmp_path) as server:
        server.wait_for_health(200)
