"""Tests that a request's logits are the same bits alone and beside fifteen others, however its prompt is cut.

Int8 and int4 in the C kernels are so by themselves, fp16 beside them with AVX512; all else with --batch-invariant.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.api import Progress, Request, SamplingParams
from octavo.engine.config import EngineConfig
from octavo.engine.startup.start import load
from octavo.engine.startup.tiles import find
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.cpu.library import library
from octavo.model.weights.tiles import TiledWeight
from tests.engine.serving import VOCAB, Served, serve
from tests.model.loading.test_takeover import CASES, write
from tests.model.marks import needs_fbgemm
from tests.tiny import write_tiny_checkpoint

THREADS = 2  # of the engine: the suite may leave this process one

needs_kernels = pytest.mark.skipif(library() is None, reason="the C kernels were not built")
needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="AVX2's float16 product would need padding"
)

WAYS = [
    pytest.param({"quantization": "int8"}, id="int8", marks=needs_kernels),
    pytest.param({"quantization": "int4"}, id="int4", marks=needs_kernels),
    pytest.param({"dtype": "float16", "batch_invariant": True}, id="fp16", marks=needs_fbgemm),
    pytest.param({"dtype": "float16"}, id="fp16, where it costs little", marks=[needs_kernels, needs_avx512]),
    pytest.param({"dtype": "float32", "batch_invariant": True}, id="fp32"),
    pytest.param({"dtype": "bfloat16", "batch_invariant": True}, id="bf16"),
]
MODELS = {
    "sparse": {"num_local_experts": 8, "hidden_size": 64, "intermediate_size": 96},
    "sliding window": {"sliding_window": 9},
    "dense": {"model_type": "mistral"},
}
REQUESTS, ALONE = 16, (0, 5, 11)  # how many requests there are, and which of them also run alone


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 40, (REQUESTS,), generator=generator).tolist()
    prompts = [tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist()) for length in lengths]
    return [Request(f"{n}", prompt, SamplingParams(max_tokens=6, temperature=0)) for n, prompt in enumerate(prompts)]


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=7, sharp=4.0, **request.param)


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture(params=WAYS)
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Decoder:
    config = EngineConfig(str(checkpoint), threads=THREADS, **request.param)
    return load(find(config, ignore), ModelConfig.from_pretrained(checkpoint), ignore).model


def test_the_same_bits_alone_and_beside_fifteen_others(model: Decoder) -> None:
    together = serve(model, [requests()], max_num_batched_tokens=23)
    for n in ALONE:
        alone = serve(model, [[requests()[n]]], enable_prefix_caching=False)
        assert alone.tokens[f"{n}"] == together.tokens[f"{n}"]
        same_bits(alone, together)


@needs_kernels
@pytest.mark.parametrize("name", ["gptq, act order", "pack-quantized, symmetric", "pack-quantized, 8 bits, channel"])
@pytest.mark.parametrize("family", ["mixtral", "mistral"])
def test_weights_of_a_quantised_checkpoint_give_the_same_bits(tmp_path: Path, name: str, family: str) -> None:
    pack, described, more = CASES[name]
    write(tmp_path, pack, described, **more, vocab_size=VOCAB, model_type=family)
    config = EngineConfig(str(tmp_path), threads=THREADS)
    model = load(find(config, ignore), ModelConfig.from_pretrained(tmp_path), ignore).model
    assert isinstance(model.layers[0].attention.qkv, TiledWeight)
    again = [replace(request, id=f"again {request.id}") for request in requests()]  # Most of it is cached by then.
    together = serve(model, [requests(), again], max_num_batched_tokens=23)
    for n in ALONE:
        for request in (requests()[n], again[n]):
            alone = serve(model, [[request]], enable_prefix_caching=False)
            assert alone.tokens[request.id] == together.tokens[request.id]
            same_bits(alone, together)


@needs_kernels
def test_outliers_of_others_change_nothing(checkpoint: Path) -> None:
    """The tokens of other requests have activations that are ten thousand times larger."""
    config = EngineConfig(str(checkpoint), quantization="int8", threads=THREADS)
    model = load(find(config, ignore), ModelConfig.from_pretrained(checkpoint), ignore).model
    loud = {token for request in requests()[1:] for token in request.prompt} - set(requests()[0].prompt)
    alone = serve(model, [requests()[:1]])
    table = model.embedding.table.clone()
    table[sorted(loud - set(alone.tokens["0"]))] *= 1e4
    louder = replace(model, embedding=replace(model.embedding, table=table))
    same_bits(alone, serve(louder, [requests()], enable_prefix_caching=False))


def same_bits(alone: Served, together: Served) -> None:
    assert alone.logits
    for where, logits in alone.logits.items():
        assert torch.equal(logits, together.logits[where]), where
