"""Octavo's engine without HTTP, in a process of its own: a JSON question a line on stdin, an answer a line on stdout.

    python -m benchmarks.common.engine DIRECTORY [--without-kernels] [flags of octavo serve]

It is what `octavo serve` starts beside its API process. A question is {"streams", "prompt_tokens", "max_tokens"}: that
many prompts of random tokens, all at once. The answer is {"steps": [[seconds, tokens], ...], "anonymous_bytes"}: when
each step ended, how many tokens it brought, and what the process holds afterwards. Another question is {"expert_layer":
tokens}; the answer is what benchmarks.common.expert_layer measures.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import octavo.model.kernels.cpu.library as kernels
from benchmarks.common import expert_layer
from benchmarks.common.loads import Step
from benchmarks.common.memory import anonymous_bytes
from octavo.engine.api import Request, SamplingParams
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.startup.build import build
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.server import options


class Peer:
    """An engine that answers one question at a time; the same questions in the same order are the same work."""

    def __init__(self, config: EngineConfig) -> None:
        start = perf_counter()
        self.engine, self.ready = build(config, lambda progress: None)
        self.load_seconds = perf_counter() - start
        self._vocabulary = self.engine.scheduler.limits.vocab_size
        self._random = torch.Generator().manual_seed(0)
        self._questions = 0

    @property
    def model(self) -> Decoder:
        assert isinstance(self.engine.runner, ModelRunner)
        return self.engine.runner.model

    def answer(self, streams: int, prompt_tokens: int, max_tokens: int) -> list[Step]:
        """Runs to the end of all streams. No prompt begins like an earlier one, so no prefix cache helps."""
        self._questions += 1
        prompts = torch.randint(self._vocabulary, (streams, prompt_tokens), generator=self._random).tolist()
        requests = [
            # Sampled: what is likeliest to a model of random weights goes in circles, and so would its experts.
            Request(f"{self._questions}-{n}", tuple(prompt), SamplingParams(max_tokens, seed=n))
            for n, prompt in enumerate(prompts)
        ]
        start = perf_counter()
        for request in requests:
            if (refusal := self.engine.add(request)) is not None:
                raise SystemExit(f"The engine refuses a prompt: {refusal.error}")
        steps = []
        while self.engine.has_work():
            outputs = self.engine.step().outputs
            steps.append((perf_counter() - start, sum(len(output.token_ids) for output in outputs)))
        return steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.common.engine")
    parser.add_argument("--without-kernels", action="store_true", help="run as if the C kernels had not been built")
    options.add_to(parser)
    given: dict[str, Any] = vars(parser.parse_args())
    if given.pop("without_kernels"):
        kernels.find = lambda: None
    directory = given["model"]
    try:
        vocabulary = ModelConfig.from_pretrained(Path(directory)).vocab_size
        config, _ = options.configure(given, directory, directory, vocabulary)
        peer = Peer(config)
    except ModelError as error:
        raise SystemExit(str(error)) from None
    hello = {
        "description": peer.ready.description,
        "load_seconds": peer.load_seconds,
        "anonymous_bytes": anonymous_bytes(),
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "expert_layer" in question:
            answer: Any = expert_layer.measure(peer.model, question["expert_layer"])
        else:
            answer = {"steps": peer.answer(**question), "anonymous_bytes": anonymous_bytes()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
