"""Checks that serving launches only what was compiled at start, so that nobody waits for a compiler.

Without a GPU nothing is compiled or run. For each launch the test notes what Triton would compile a kernel for: its
compile-time arguments, and for the others their types, and which are ones or multiples of 16.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import KernelParam, create_function_from_signature

from octavo.engine.api import Request, SamplingParams
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Scheduler
from octavo.engine.startup.probe import Capacity
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from tests.engine.fake_gpu import FakeMemory
from tests.engine.fakes import limits
from tests.gpu.models import BLOCK_SIZE, interpreted, load

SEQUENCES, STEPS = 32, 150
LENGTHS = (1, 2, 5, 17, 40, 65, 130, 300, 509)  # tokens of the prompts


@dataclass
class Compiler:
    """A Compiler notes each kernel that is made, or would be."""

    made: set[str] = field(default_factory=set)

    def install(self, patch: pytest.MonkeyPatch, device: torch.device) -> "Compiler":
        if device.type == "cuda":
            patch.setattr(triton.knobs.runtime, "jit_cache_hook", self._compiles)
        else:
            patch.setattr(
                InterpretedFunction, "run", lambda function, *given, **named: self._runs(function, given, named)
            )
        return self

    def _compiles(self, **told: Any) -> None:
        self.made.add(f"{told['fn'].name} {told['key']}")

    def _runs(self, function: InterpretedFunction, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        options = {name: value for name, value in named.items() if name not in ("grid", "warmup")}
        bound, kind, rest = binder(function)(*given, **options)
        self.made.add(f"{function.fn.__name__} {kind} {rest}")
        if "tokens_ptr" in bound:  # The next step looks up what was drawn.
            bound["tokens_ptr"].zero_()


@cache
def binder(function: InterpretedFunction) -> Callable[..., tuple[dict[str, Any], list[Any], dict[str, Any]]]:
    """Returns the function that says which kernel some arguments need."""
    parameters = inspect.signature(function.fn)
    loose, unaligned = (function.kwargs[f"do_not_specialize{more}"] or () for more in ("", "_on_alignment"))
    described = [
        KernelParam(place, parameter, name in loose, name in unaligned)
        for place, (name, parameter) in enumerate(parameters.parameters.items())
    ]
    return create_function_from_signature(parameters, described, make_backend(GPUTarget("cuda", 90, 32)))


@pytest.mark.parametrize("step_tokens", [16, 300], ids=lambda tokens: f"steps of {tokens}")
def test_serving_compiles_nothing(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_tokens: int
) -> None:
    check_that_serving_compiles_nothing(load(tmp_path, device), step_tokens, monkeypatch)


def test_serving_many_experts_compiles_nothing(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each expert has an eighth of the pairs that Mixtral's have, so steps beyond 256 tokens have kernels of theirs."""
    model = load(tmp_path, device, torch.bfloat16, num_local_experts=64)
    check_that_serving_compiles_nothing(model, 1100, monkeypatch)


def test_serving_layers_that_are_not_fused_compiles_nothing(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_serving_compiles_nothing(load(tmp_path, device), 300, monkeypatch, fused=False)


def check_that_serving_compiles_nothing(
    loaded: Decoder, step_tokens: int, monkeypatch: pytest.MonkeyPatch, fused: bool = True
) -> None:
    device = loaded.device
    model = loaded if device.type == "cuda" else interpreted(loaded)
    model = model if fused else replace(model, fused=None)
    compiler = Compiler().install(monkeypatch, device)
    config = EngineConfig("", max_num_batched_tokens=step_tokens, max_num_seqs=SEQUENCES, sampled_vocab=250)
    with monkeypatch.context() as patch:
        if device.type == "cpu":
            FakeMemory().install(patch)
        Capacity.on_gpu(model, config, lambda progress: None)
    at_start = set(compiler.made)
    serve(model, step_tokens)
    assert compiler.made - at_start == set()
    assert at_start or device.type == "cuda"  # On a device an earlier test may have compiled everything.


def serve(model: Decoder, step_tokens: int) -> None:
    """Serves requests that come at random."""
    longest, random = model.config.max_position_embeddings, Random(1)
    cache = KVCache.allocate(model.config, 4 * longest // BLOCK_SIZE, BLOCK_SIZE, model.activation_dtype, model.device)
    bounds = limits(
        max_model_len=longest,
        vocab_size=model.config.vocab_size,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=step_tokens,
        enable_prefix_caching=False,
    )
    core = Engine(
        Scheduler(BlockPool(cache.num_blocks, BLOCK_SIZE), bounds), ModelRunner(model, cache, 250, overlaps=True)
    )
    for step in range(STEPS):
        for n in range(random.choice((0, 0, 0, 1, 1, 2, 9))):
            prompt = tuple(random.choices(range(250), k=random.choice(LENGTHS)))
            params = SamplingParams(
                max_tokens=random.choice((1, 3, 40)),
                logprobs=random.choice((None, 0, 2)),
                repetition_penalty=random.choice((1.0, 1.0, 1.2)),
            )
            assert core.add(Request(f"{step} {n}", prompt, params)) is None
        core.step()
