"""Runs transformers' Mixtral as a peer, in a process that answers a line of JSON on stdin with one on stdout.

    python -m benchmarks.common.transformers_peer forward DIRECTORY DTYPE THREADS
    python -m benchmarks.common.transformers_peer generate DIRECTORY

`forward` answers the questions of benchmarks.common.engine: it runs the model and its cache and samples a token for
each stream, without `generate`. `generate` answers {"prompt", "max_tokens"} with the seconds at which each token of a
greedy answer came. Both try the implementations of the experts on work like that to come, and use the fastest.
"""

import argparse
import ctypes
import gc
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, MixtralConfig, MixtralForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from benchmarks.common.figures import Spread
from benchmarks.common.loads import StepEnd
from benchmarks.common.process import anonymous_bytes
from benchmarks.common.prompts import prompt
from octavo.model.config import ModelConfig

EXPERTS = ("grouped_mm", "eager")  # "batched_mm" copies the experts for each token: on a CPU it is ten times slower
DTYPES = ("bfloat16", "float32")  # that `generate` tries
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # Octavo chooses so, too
FORWARD_TRIAL_TOKENS = 4
GENERATE_TRIALS, GENERATE_TRIAL_TOKENS = 2, 24
TIMES = 3  # that seconds_per_token measures

Figure = TypeVar("Figure")


def try_experts(model: Any, measure: Callable[[], Figure]) -> dict[str, Figure]:
    """Measures the model with each implementation of the experts."""
    found = {}
    for name in EXPERTS:
        model.set_experts_implementation(name)
        found[name] = measure()
    return found


class ForwardPeer:
    """A ForwardPeer runs the forward pass of one checkpoint in one dtype."""

    def __init__(self, directory: str, dtype: str) -> None:
        start = perf_counter()
        loaded: Any = MixtralForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model = loaded.eval()
        self.load_seconds = perf_counter() - start
        _trim_memory()
        self.fastest: dict[str, str] = {}  # kind of load -> implementation
        self._random = torch.Generator().manual_seed(0)
        # transformers 5.24 renamed the argument: the old name warns there, and the new one is unknown before.
        parameters = inspect.signature(self.model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

    def answer(self, streams: int, prompt_tokens: int, max_tokens: int) -> list[StepEnd]:
        """Runs all streams; returns when each step ended. The same questions bring the prompts that Octavo is given."""
        prompts = torch.randint(self.model.config.vocab_size, (streams, prompt_tokens), generator=self._random)
        load = f"prefill {prompt_tokens}" if max_tokens == 1 else f"{streams} streams"
        if load not in self.fastest:
            trial_tokens = min(max_tokens, FORWARD_TRIAL_TOKENS)
            seconds = try_experts(self.model, lambda: self._shortest_step(prompts, trial_tokens))
            self.fastest[load] = min(seconds, key=seconds.__getitem__)
        self.model.set_experts_implementation(self.fastest[load])
        return self._generate(prompts, max_tokens)

    def _shortest_step(self, prompts: Tensor, tokens: int) -> float:
        ends = [0.0, *(end for end, _ in self._generate(prompts, tokens))]
        return min(after - before for before, after in zip(ends, ends[1:], strict=False))

    @torch.inference_mode()
    def _generate(self, prompts: Tensor, tokens: int) -> list[StepEnd]:
        """Continues prompts [streams, length] by so many tokens each."""
        cache = {self._cache_argument: DynamicCache(config=self.model.config)}
        ids, ends = prompts, []
        start = perf_counter()
        for _ in range(tokens):
            logits: Tensor = self.model(ids, **cache, use_cache=True, logits_to_keep=1).logits
            # Sampled, because the likeliest tokens of a model of random weights go in circles.
            ids = torch.multinomial(logits[:, -1].float().softmax(-1), 1, generator=self._random)
            ends.append((perf_counter() - start, len(ids)))
        return ends


def _trim_memory() -> None:
    """Gives the system back what loading has freed: glibc would keep gigabytes of it while others are measured."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Arrivals(BaseStreamer):
    """An Arrivals notes when each token comes; the first call brings the prompt."""

    start: float = field(default_factory=perf_counter)
    calls: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        self.calls.append(perf_counter() - self.start)

    def end(self) -> None:
        """Does nothing: no token is held back."""


class GeneratePeer:
    """A GeneratePeer runs `generate` in the dtype and with the implementation of the experts that are fastest."""

    def __init__(self, directory: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        rates: dict[tuple[str, str], float] = {}
        for dtype in DTYPES:
            self._load(directory, dtype)
            rates |= {(dtype, experts): rate for experts, rate in try_experts(self.model, self._rate).items()}
        self.tried = {" ".join(choice): round(rate, 2) for choice, rate in rates.items()}
        dtype, experts = max(rates, key=rates.__getitem__)
        self.choice = f"{DEVICE} {dtype} {experts}"
        self._load(directory, dtype)
        self.model.set_experts_implementation(experts)

    def generate(self, text: str, max_tokens: int) -> list[float]:
        """Returns the seconds at which each token of a greedy answer came."""
        arrivals = Arrivals()
        messages = [{"role": "user", "content": text}]
        inputs = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        greedy = {"do_sample": False, "temperature": None, "top_p": None}
        self.model.generate(**inputs.to(DEVICE), max_new_tokens=max_tokens, streamer=arrivals, **greedy)
        return arrivals.calls[1:]

    def _rate(self) -> float:
        """Returns the tokens per second of the best of a few trials."""
        self.generate(prompt(0), 2)  # warms up
        trials = [self.generate(prompt(number), GENERATE_TRIAL_TOKENS) for number in range(GENERATE_TRIALS)]
        return max(len(arrivals) / arrivals[-1] for arrivals in trials)

    def _load(self, directory: str, dtype: str) -> None:
        self.model: Any = None  # the one before is freed first
        loaded: Any = MixtralForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model = loaded.to(DEVICE)


def random_mixtral(shape: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Returns transformers' model of that shape with random weights. Its answers do not end by themselves."""
    config = MixtralConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        max_position_embeddings=shape.max_position_embeddings,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def seconds_per_token(model: Any, prompts: Tensor, tokens: int) -> Spread:
    """Returns the seconds that `generate` takes for a token of all prompts [B, length], beyond the first token."""
    _seconds(model, prompts, 2)  # warms up
    first = min(_seconds(model, prompts, 1) for _ in range(TIMES))
    return Spread.over((_seconds(model, prompts, 1 + tokens) - first) / tokens for _ in range(TIMES))


@torch.inference_mode()
def _seconds(model: Any, prompts: Tensor, tokens: int) -> float:
    started = perf_counter()
    model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, do_sample=True, top_k=0)
    if prompts.is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - started


def main() -> None:
    arguments = _arguments()
    disable_progress_bar()
    if arguments.work == "forward":
        torch.set_num_threads(arguments.threads)
        _answer_forward(ForwardPeer(arguments.directory, arguments.dtype), arguments.dtype)
    else:
        _answer_generate(GeneratePeer(arguments.directory))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.common.transformers_peer", description="Answers lines of JSON with transformers."
    )
    work = parser.add_subparsers(dest="work", required=True)
    forward = work.add_parser("forward", help="run the forward pass and sample")
    forward.add_argument("directory")
    forward.add_argument("dtype", choices=DTYPES)
    forward.add_argument("threads", type=int)
    work.add_parser("generate", help="run generate").add_argument("directory")
    return parser.parse_args()


def _answer_forward(peer: ForwardPeer, dtype: str) -> None:
    hello = {"description": [f"{dtype} weights"], "load_seconds": peer.load_seconds}
    print(json.dumps(hello | {"anonymous_bytes": anonymous_bytes()}), flush=True)
    for line in sys.stdin:
        ends = peer.answer(**json.loads(line))
        print(json.dumps({"steps": ends, "anonymous_bytes": anonymous_bytes(), "experts": peer.fastest}), flush=True)


def _answer_generate(peer: GeneratePeer) -> None:
    print(json.dumps({"choice": peer.choice, "tried": peer.tried}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(peer.generate(question["prompt"], question["max_tokens"])), flush=True)


if __name__ == "__main__":
    main()
