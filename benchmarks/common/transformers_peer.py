"""transformers' forward pass, without `generate`, in a process of its own that is asked as benchmarks.common.engine is.

    python -m benchmarks.common.transformers_forward DIRECTORY DTYPE THREADS

It has its cache, and samples a token for every stream, and does nothing else. Each load runs with the implementation of
the experts that was fastest when that load first came.
"""

import ctypes
import gc
import json
import sys
from contextlib import suppress
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, MixtralForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.common.loads import Step
from benchmarks.common.memory import anonymous_bytes

EXPERTS = ("grouped_mm", "eager")  # "batched_mm" copies the experts for every token: ten times slower on a CPU
TRIAL_TOKENS = 4


class Peer:
    """One checkpoint in one dtype."""

    def __init__(self, directory: str, dtype: str) -> None:
        start = perf_counter()
        loaded: Any = MixtralForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model = loaded.eval()
        self.load_seconds = perf_counter() - start
        _give_back()
        self.fastest: dict[str, str] = {}  # kind of load -> implementation
        self._random = torch.Generator().manual_seed(0)

    def answer(self, streams: int, prompt_tokens: int, max_tokens: int) -> list[Step]:
        """As that of benchmarks.common.engine, on the same prompts if it is asked the same questions."""
        prompts = torch.randint(self.model.config.vocab_size, (streams, prompt_tokens), generator=self._random)
        load = f"prefill {prompt_tokens}" if max_tokens == 1 else f"{streams} streams"
        if load not in self.fastest:
            self.fastest[load] = self._try(prompts, min(max_tokens, TRIAL_TOKENS))
        self.model.set_experts_implementation(self.fastest[load])
        return self._generate(prompts, max_tokens)

    def _try(self, prompts: Tensor, tokens: int) -> str:
        """The implementation whose shortest step is the shortest."""
        seconds = {}
        for name in EXPERTS:
            self.model.set_experts_implementation(name)
            ends = [0.0, *(end for end, _ in self._generate(prompts, tokens))]
            seconds[name] = min(after - before for before, after in zip(ends, ends[1:], strict=False))
        return min(seconds, key=seconds.__getitem__)

    @torch.inference_mode()
    def _generate(self, prompts: Tensor, tokens: int) -> list[Step]:
        """prompts [streams, length]"""
        cache = DynamicCache(config=self.model.config)
        ids, steps = prompts, []
        start = perf_counter()
        for _ in range(tokens):
            logits: Tensor = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            # Sampled, as there: the likeliest tokens of a model of random weights go in circles.
            ids = torch.multinomial(logits[:, -1].float().softmax(-1), 1, generator=self._random)
            steps.append((perf_counter() - start, len(ids)))
        return steps


def _give_back() -> None:
    """Returns what loading has freed to the system (glibc keeps gigabytes of it): others are measured beside it."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def main(directory: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    disable_progress_bar()
    peer = Peer(directory, dtype)
    hello = {"description": [f"{dtype} weights"], "load_seconds": peer.load_seconds}
    print(json.dumps(hello | {"anonymous_bytes": anonymous_bytes()}), flush=True)
    for line in sys.stdin:
        steps = peer.answer(**json.loads(line))
        print(json.dumps({"steps": steps, "anonymous_bytes": anonymous_bytes(), "experts": peer.fastest}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
