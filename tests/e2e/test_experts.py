"""A real engine behind real sockets tells which experts serve; what requests are told and what is counted agree."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.harness import PATIENCE, ROOT, Server, started, write_model

EXPERTS, TOP_K, LAYERS = 4, 2, 2
PROMPT, ANSWER = "a text of some length, so that it fills a block or two of the cache", 8
FLAGS = ("--kv-cache-memory", "4MiB", "--max-model-len", "256", "--threads", "1", "--served-model-name", "tiny")
CONTROL = ("--allow-expert-control", "--expert-metrics")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K, "num_hidden_layers": LAYERS, "sharp": 4.0}
    return write_model(tmp_path_factory.mktemp("experts") / "model", **sizes)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(["-m", "octavo", "serve", model, *FLAGS, *CONTROL], tmp_path_factory.mktemp("server")) as server:
        server.wait_for_health(200)
        yield server
        assert "Traceback" not in server.output


@dataclass(frozen=True)
class Told:
    ids: NDArray[np.int32]  # [positions, L, k]
    weights: NDArray[np.float32]  # [positions, L, k]


def told(*holders: dict[str, Any]) -> Told:
    """Returns the routes in some choices, joined."""
    ids = b"".join(base64.b64decode(each["routed_experts"]) for each in holders)
    weights = b"".join(base64.b64decode(each["routed_experts_weights"]) for each in holders)
    shape = (-1, LAYERS, TOP_K)
    return Told(np.frombuffer(ids, "<i4").reshape(shape), np.frombuffer(weights, "<f4").reshape(shape))


def complete(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True} | fields
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response


def routed(server: Server, **fields: Any) -> Told:
    return told(complete(server, return_routed_experts=True, **fields).json()["choices"][0])


def counts(found: Told) -> list[list[int]]:
    """Returns how often each expert is among the routes [L, E]."""
    return [np.bincount(found.ids[:, layer].ravel(), minlength=EXPERTS).tolist() for layer in range(LAYERS)]


def use(server: Server) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/experts", timeout=PATIENCE).json()
    assert isinstance(answer, dict)
    return answer


def test_what_is_told_is_complete(server: Server) -> None:
    answer = complete(server, return_routed_experts=True).json()
    found = told(answer["choices"][0])
    assert len(found.ids) == answer["usage"]["total_tokens"] - 1
    assert found.ids.min() >= 0 and found.ids.max() < EXPERTS
    assert (found.ids[..., 0] != found.ids[..., 1]).all() and (found.weights[..., 0] >= found.weights[..., 1]).all()
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=2e-3)
    assert answer["sglext"]["routed_experts"] == answer["choices"][0]["routed_experts"]


def test_streams_and_caches_tell_the_same(server: Server) -> None:
    first = routed(server, cache_salt="s")
    again = complete(server, cache_salt="s", return_routed_experts=True).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    lines = complete(server, cache_salt="s", return_routed_experts=True, stream=True).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    pieces = [choice for chunk in chunks for choice in chunk["choices"] if "routed_experts" in choice]
    assert len(pieces) > 1
    for other in (told(again["choices"][0]), told(*pieces)):
        np.testing.assert_array_equal(other.ids, first.ids)
        np.testing.assert_array_equal(other.weights, first.weights)
    late = routed(server, cache_salt="s", routed_experts_start_len=10)
    np.testing.assert_array_equal(late.ids, first.ids[10:])


def test_counts_are_those_of_the_routes(server: Server) -> None:
    httpx.post(f"{server.url}/v1/experts/reset", timeout=PATIENCE).raise_for_status()
    first = routed(server, cache_salt="a", metadata={"topic": "law"})
    second = routed(server, cache_salt="b", prompt="something else", metadata={"topic": "code"})
    answer = use(server)
    assert answer["experts"] == {"layers": [0, 1], "experts": EXPERTS, "top_k": TOP_K, "identical": False}
    topics = {each["topic"]: each for each in answer["topics"]}
    for topic, found in (("law", first), ("code", second)):
        assert topics[topic]["tokens"] == len(found.ids)
        assert [layer["counts"] for layer in topics[topic]["layers"]] == counts(found)
        repeats = (found.ids[1:, :, 0] == found.ids[:-1, :, 0]).sum(0).tolist()
        assert [layer["repeats"] for layer in topics[topic]["layers"]] == repeats
    assert answer["use"]["tokens"] == answer["last_minutes"][0]["tokens"] == len(first.ids) + len(second.ids)
    assert server.metric("routed_tokens_total") >= answer["use"]["tokens"]


def test_what_is_cached_is_not_counted(server: Server) -> None:
    complete(server, cache_salt="c")
    before = use(server)["use"]["tokens"]
    cached = complete(server, cache_salt="c").json()["usage"]
    computed = cached["total_tokens"] - 1 - cached["prompt_tokens_details"]["cached_tokens"]
    assert use(server)["use"]["tokens"] - before == computed < cached["total_tokens"] - 1


def test_a_masked_expert_serves_nobody(server: Server) -> None:
    free = routed(server)
    expert = int(free.ids[0, 1, 0])
    masked = routed(server, expert_mask=[[1, expert]])
    assert expert in free.ids[:, 1] and expert not in masked.ids[:, 1]
    prompt = slice(0, len(PROMPT))  # Layer 0 of the prompt does not depend on layer 1.
    np.testing.assert_array_equal(masked.ids[prompt, 0], free.ids[prompt, 0])
    favoured = routed(server, expert_bias=[[0, 3, 100]])
    assert (favoured.ids[:, 0, 0] == 3).all()
    np.testing.assert_array_equal(routed(server).ids, free.ids)


def test_the_lens_counts_as_the_server_does(server: Server, model: Path, tmp_path: Path) -> None:
    found = routed(server, max_tokens=0)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"domain": "law", "prompt": PROMPT}))
    command = ["-m", "octavo", "lens", model, tmp_path / "prompts.jsonl", "--json", tmp_path / "out.json"]
    run = subprocess.run(
        [sys.executable, *map(str, command), *FLAGS[:-2]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (law,) = json.loads((tmp_path / "out.json").read_text())["topics"]
    assert law["tokens"] == len(found.ids)
    assert [layer["counts"] for layer in law["layers"]] == counts(found)
