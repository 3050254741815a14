"""Drives Octavo's engine without a server: in this process, or in one of its own that answers lines of JSON.

    python -m benchmarks.common.engine DIRECTORY [--without-kernels] [flags of octavo serve]

The process holds what `octavo serve` starts beside its API process. It reads a question from each line of stdin and
writes the answer as a line of stdout. The question {"streams", "prompt_tokens", "max_tokens"} asks for that many
prompts of random tokens, all at once. Its answer {"steps": [[seconds, tokens], ...], "anonymous_bytes"} says when each
step ended, how many tokens it brought, and what the process holds afterwards. The question {"expert_layer": tokens}
asks for what measure_expert_layer returns.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import octavo.model.kernels.cpu.library as kernels
from benchmarks.common.figures import Spread
from benchmarks.common.loads import StepEnd
from benchmarks.common.process import anonymous_bytes
from octavo.engine.api import Ready, Request, SamplingParams
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.startup.build import build
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder, DecoderLayer
from octavo.model.kernels.cpu.decoder import CpuDecoder, CpuLayer

LAYER_PASSES = 2  # over all layers; the last one counts


class RefusedError(Exception):
    """The engine refuses a prompt that it is measured with."""


@dataclass(frozen=True, slots=True)
class DecodeTiming:
    """A DecodeTiming says which steps of decoding are timed."""

    prompt_tokens: int  # of each sequence
    warm_up: int  # steps before the first that is timed
    steps: int  # of a part; each part has a figure of its own
    parts: int


class EngineDriver:
    """An EngineDriver asks one engine for answers to random prompts.

    The same calls in the same order are the same work, and no prompt begins like an earlier one, so no prefix cache
    helps. Tokens are sampled: the likeliest ones of a model of random weights go in circles, and so would its experts.
    """

    def __init__(self, engine: Engine[Any]) -> None:
        self.engine = engine
        self._random = torch.Generator().manual_seed(0)
        self._calls = 0

    def answer(self, streams: int, prompt_tokens: int, max_tokens: int) -> list[StepEnd]:
        """Runs all streams to their end; returns when each step ended. Raises RefusedError."""
        requests = self._requests(streams, prompt_tokens, max_tokens)
        start = perf_counter()
        self._add(requests)
        ends = []
        while self.engine.has_work():
            outputs = self.engine.step().outputs
            ends.append((perf_counter() - start, sum(len(output.token_ids) for output in outputs)))
        return ends

    def decode(self, sequences: int, timing: DecodeTiming) -> Spread:
        """Returns the seconds on the wall's clock of a step that brings each sequence a token. Raises RefusedError."""
        new_tokens = timing.warm_up + timing.parts * timing.steps
        requests = self._requests(sequences, timing.prompt_tokens, 2 * new_tokens + timing.prompt_tokens)
        self._add(requests)
        self._await_first_tokens({request.id for request in requests})
        for _ in range(timing.warm_up):
            self.engine.step()
        seconds = [self._seconds_per_step(timing.steps) for _ in range(timing.parts)]
        for request in requests:
            self.engine.abort(request.id)
        while self.engine.has_work():
            self.engine.step()
        return Spread.over(seconds)

    def _requests(self, streams: int, prompt_tokens: int, max_tokens: int) -> list[Request]:
        self._calls += 1
        vocab_size = self.engine.scheduler.limits.vocab_size
        prompts = torch.randint(vocab_size, (streams, prompt_tokens), generator=self._random).tolist()
        return [
            Request(f"{self._calls}-{n}", tuple(prompt), SamplingParams(max_tokens, seed=n))
            for n, prompt in enumerate(prompts)
        ]

    def _add(self, requests: list[Request]) -> None:
        for request in requests:
            if (refusal := self.engine.add(request)) is not None:
                raise RefusedError(f"The engine refuses a prompt: {refusal.error}")

    def _await_first_tokens(self, ids: set[str]) -> None:
        """Steps until each of the requests has brought a token."""
        while ids:
            ids -= {output.id for output in self.engine.step().outputs if output.token_ids}

    def _seconds_per_step(self, steps: int) -> float:
        started = perf_counter()
        for _ in range(steps):
            self.engine.step()
        return (perf_counter() - started) / steps


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A LoadedEngine is an engine as `octavo serve` builds it, ready to be driven."""

    driver: EngineDriver
    ready: Ready
    load_seconds: float

    @classmethod
    def build(cls, config: EngineConfig) -> "LoadedEngine":
        """Loads the model. Raises ModelError if it cannot be served."""
        start = perf_counter()
        engine, ready = build(config, lambda progress: None)
        return cls(EngineDriver(engine), ready, perf_counter() - start)

    @property
    def model(self) -> Decoder:
        runner = self.driver.engine.runner
        assert isinstance(runner, ModelRunner)
        return runner.model


@torch.inference_mode()
def measure_expert_layer(model: Decoder, tokens: int) -> tuple[float, float]:
    """Returns the seconds of one layer's experts and the bytes of the distinct experts read, as means over all layers.

    The layers take turns: together their weights are far too large for any cache.
    """
    config = model.config
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, config.hidden_size, generator=generator).to(model.activation_dtype)  # [T, H]
    choices = [_choose(tokens, config.num_experts, config.num_experts_per_tok, generator) for _ in model.layers]
    weights = torch.full((tokens, config.num_experts_per_tok), 1 / config.num_experts_per_tok)  # [T, k]
    for _ in range(LAYER_PASSES):
        started = perf_counter()
        for layer, ids in zip(_layers(model), choices, strict=True):
            _run_experts(model, layer, x, ids, weights)
        seconds = (perf_counter() - started) / len(model.layers)
    touched = [
        experts.gate_up[expert].nbytes + experts.down[expert].nbytes
        for experts, ids in zip((layer.moe.experts for layer in model.layers), choices, strict=True)
        for expert in ids.unique().tolist()
    ]
    return seconds, sum(touched) / len(model.layers)


def _layers(model: Decoder) -> Sequence[CpuLayer | DecoderLayer]:
    """Returns the layers as decoding runs them."""
    return model.fused.layers if isinstance(model.fused, CpuDecoder) else model.layers


def _run_experts(model: Decoder, layer: CpuLayer | DecoderLayer, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Computes the experts as decoding does: a CpuLayer has its structs, and a pass first sets the threads."""
    if isinstance(layer, CpuLayer):
        assert layer.experts is not None, "The kernels do not take these experts."
        layer.kernels.follow_torch()
        return layer.kernels.experts(x, ids, weights, layer.experts)
    return model.ops.experts(x, ids, weights, layer.moe.experts)


def _choose(tokens: int, experts: int, top_k: int, generator: torch.Generator) -> Tensor:
    """Draws different experts for each token, all equally likely, [T, k]."""
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


def main() -> None:
    try:
        _answer_lines(_load(_arguments()))
    except (ModelError, RefusedError) as error:
        raise SystemExit(str(error)) from None


def _arguments() -> dict[str, Any]:
    from octavo.server import options  # needs pydantic, which a machine that only drives an engine may lack

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.common.engine", description="Answers lines of JSON with an engine's steps."
    )
    parser.add_argument("--without-kernels", action="store_true", help="run as if the C kernels had not been built")
    options.add_to(parser)
    return vars(parser.parse_args())


def _load(given: dict[str, Any]) -> LoadedEngine:
    from octavo.server import options

    if given.pop("without_kernels"):
        kernels.find = lambda: None
    directory = given["model"]
    vocabulary = ModelConfig.from_pretrained(Path(directory)).vocab_size
    config, _ = options.configure(given, directory, directory, vocabulary)
    return LoadedEngine.build(config)


def _answer_lines(engine: LoadedEngine) -> None:
    hello = {
        "description": engine.ready.description,
        "load_seconds": engine.load_seconds,
        "anonymous_bytes": anonymous_bytes(),
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "expert_layer" in question:
            answer: Any = measure_expert_layer(engine.model, question["expert_layer"])
        else:
            answer = {"steps": engine.driver.answer(**question), "anonymous_bytes": anonymous_bytes()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
