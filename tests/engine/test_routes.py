"""Compares the experts that the engine tells and counts with the routers of transformers, however a text is served.

The margins of the routers are asserted, so that rounding has not decided which expert served a token.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo.engine.api import ExpertUse, Request, Routes, SamplingParams
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from tests.engine.fake_gpu import capturable
from tests.engine.serving import BLOCK_SIZE, VOCAB, Served, serve
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.oracle

EXPERTS, LAYERS, TOP_K = 6, 3, 2
MARGIN = 1e-4  # of the logits of the chosen experts and of the first that was not chosen
FROM = {"own 2": 3, "own 4": 7, "own 5": 40}  # the first position that is told, for some requests


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"num_local_experts": EXPERTS, "num_hidden_layers": LAYERS}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3, sharp=4.0, **shape)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Decoder:
    config = ModelConfig.from_pretrained(checkpoint)
    return load_model(checkpoint, config, select_backend(config, torch.device("cpu")), Precision.plain(torch.float32))


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def requests(prefix: str = "") -> list[Request]:
    """Returns requests of several topics. Some share a beginning, and two are choices of one prompt."""
    generator = torch.Generator().manual_seed(5)
    shared = torch.randint(3, VOCAB, (16,), generator=generator).tolist()
    texts: dict[str, list[int]] = {}
    for index, length in enumerate((1, 3, 4, 9, 31, 5)):
        texts[f"own {index}"] = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
    for index, length in enumerate((1, 9)):
        texts[f"shared {index}"] = shared + torch.randint(3, VOCAB, (length,), generator=generator).tolist()
    texts["choice"] = texts["shared 1"]
    found = []
    for index, (name, text) in enumerate(texts.items()):
        sampling = {"temperature": 0.9 * (index > 5), "seed": 7, "choice": index}
        lens = {"routes_from": None if name == "own 0" else FROM.get(name, 0), "topic": f"topic {index % 3}"}
        params = SamplingParams(max_tokens=0 if name == "own 3" else 12, **sampling, **lens)
        found.append(Request(prefix + name, tuple(text), params))
    return found


WAYS: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1, "enable_prefix_caching": False},
    "batched": {"enable_prefix_caching": False},
    "chunked": {"max_num_batched_tokens": 7, "enable_prefix_caching": False},
    "preempted": {"num_blocks": 13, "enable_prefix_caching": False},
    "shared": {},
    "everything at once": {"num_blocks": 13, "max_num_batched_tokens": 9},
}
OVERLAPS = pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])


@dataclass(frozen=True)
class Choices:
    """Choices are those of all positions of a text."""

    ids: NDArray[Any]  # [n, L, k]
    weights: NDArray[Any]  # [n, L, k]

    @classmethod
    def told(cls, routes: Routes) -> "Choices":
        shape = routes.count, LAYERS, TOP_K
        return cls(np.frombuffer(routes.ids, "<i4").reshape(shape), np.frombuffer(routes.weights, "<f4").reshape(shape))

    @classmethod
    def of(cls, oracle: Any, text: list[int]) -> "Choices":
        """Returns what transformers chooses, surely."""
        with torch.inference_mode():
            logits = torch.stack(oracle(torch.tensor([text]), output_router_logits=True).router_logits, dim=1)
        best = logits.topk(TOP_K + 1)  # [T, L, k + 1]
        assert -best.values.diff().max().item() > MARGIN
        return cls(best.indices[..., :TOP_K].numpy(), best.values[..., :TOP_K].softmax(-1).numpy())


def check_told(served: Served, oracle: Any, prefix: str = "") -> None:
    """Asserts that each request was told what transformers chooses for its text, without the last token's."""
    for request in requests(prefix):
        text = [*request.prompt, *served.tokens[request.id]]
        first, computed = request.params.routes_from, len(text) - bool(request.params.max_tokens)
        if first is None or first >= computed:
            assert request.id not in served.routes
            continue
        told, wanted = served.routes[request.id], Choices.of(oracle, text)
        assert (told.start, told.count) == (first, computed - first)
        np.testing.assert_array_equal(Choices.told(told).ids, wanted.ids[first:computed])
        np.testing.assert_allclose(Choices.told(told).weights, wanted.weights[first:computed], atol=1e-3)


def check_counted(served: Served, oracle: Any, asked: Iterable[Request]) -> None:
    """Asserts that each topic's counts are those of its requests' texts, without what was cached."""
    tokens, counts, repeats = defaultdict[str, int](int), defaultdict[str, Any](int), defaultdict[str, Any](int)
    for request in asked:
        text, topic = [*request.prompt, *served.tokens[request.id]], request.params.topic
        new = slice(served.ended[request.id].cached_tokens, len(text) - bool(request.params.max_tokens))
        ids = Choices.of(oracle, text).ids
        again = np.concatenate([np.zeros((1, LAYERS), bool), ids[1:, :, 0] == ids[:-1, :, 0]])
        tokens[topic] += new.stop - new.start
        counts[topic] += (ids[new, :, :, None] == np.arange(EXPERTS)).sum((0, 2))  # [L, E]
        repeats[topic] += again[new].sum(0)
    added = total(served.use)
    assert {topic: use[0] for topic, use in added.items()} == tokens
    for topic, (_, experts, same) in added.items():
        np.testing.assert_array_equal(experts, counts[topic])
        np.testing.assert_array_equal(same, repeats[topic])


def total(use: Iterable[ExpertUse]) -> dict[str, tuple[int, NDArray[Any], NDArray[Any]]]:
    """Adds up the reports of each topic: tokens, counts [L, E], repeats [L]."""
    found: dict[str, tuple[int, NDArray[Any], NDArray[Any]]] = {}
    for each in use:
        counts, repeats = np.frombuffer(each.counts, "<i8").reshape(LAYERS, EXPERTS), np.frombuffer(each.repeats, "<i8")
        tokens, before, same = found.get(each.topic, (0, np.zeros_like(counts), np.zeros_like(repeats)))
        found[each.topic] = tokens + each.tokens, before + counts, same + repeats
    return found


@OVERLAPS
@pytest.mark.parametrize("graphed", [False, True], ids=["launched", "graphed"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_told_is_what_transformers_chooses(
    model: Decoder, oracle: Any, way: str, graphed: bool, overlaps: bool
) -> None:
    served = serve(capturable(model) if graphed else model, [requests()], overlaps=overlaps, **WAYS[way])
    assert (served.preemptions > 0) == ("num_blocks" in WAYS[way])
    check_told(served, oracle)
    if way != "everything at once":  # There, what was preempted is found in the prefix cache.
        check_counted(served, oracle, requests())


@OVERLAPS
def test_tokens_from_the_prefix_cache_have_theirs_too(model: Decoder, oracle: Any, overlaps: bool) -> None:
    served = serve(model, [requests(), requests("again ")], overlaps=overlaps)
    check_told(served, oracle)
    check_told(served, oracle, "again ")
    for request in requests("again "):
        assert served.ended[request.id].cached_tokens == (len(request.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    check_counted(served, oracle, [*requests(), *requests("again ")])
