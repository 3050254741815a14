"""transformers' `generate` in a process of its own: a JSON question a line on stdin, an answer a line on stdout.

    python -m benchmarks.common.transformers_generate DIRECTORY

It first tries each dtype with each implementation of the experts, on work like that to come, and keeps the fastest.
"""

import json
import sys
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from transformers import AutoTokenizer, MixtralForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from benchmarks.common.prompts import prompt

DTYPES = ("bfloat16", "float32")
EXPERTS = ("eager", "grouped_mm")  # "batched_mm" copies the experts for every token: ten times slower on a CPU
TRIALS, TRIAL_TOKENS = 2, 24
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # as Octavo chooses


@dataclass
class Arrivals(BaseStreamer):
    """Notes when each token comes; the first call brings the prompt."""

    start: float = field(default_factory=perf_counter)
    calls: list[float] = field(default_factory=list)

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(perf_counter() - self.start)

    def end(self) -> None:
        """Nothing is held back."""


class Peer:
    """The model in its fastest form, and its tokenizer."""

    def __init__(self, directory: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        trials = {(dtype, experts): 0.0 for dtype in DTYPES for experts in EXPERTS}
        for dtype in DTYPES:
            self._load(directory, dtype)
            for experts in EXPERTS:
                self.model.set_experts_implementation(experts)
                trials[dtype, experts] = self._rate()
        self.trials = {" ".join(choice): round(rate, 2) for choice, rate in trials.items()}
        dtype, experts = max(trials, key=lambda choice: trials[choice])
        self.choice = f"{DEVICE} {dtype} {experts}"
        self._load(directory, dtype)
        self.model.set_experts_implementation(experts)

    def generate(self, text: str, max_tokens: int) -> list[float]:
        """When each token of a greedy answer came, in seconds."""
        arrivals = Arrivals()
        messages = [{"role": "user", "content": text}]
        inputs = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        greedy = {"do_sample": False, "temperature": None, "top_p": None}
        self.model.generate(**inputs.to(DEVICE), max_new_tokens=max_tokens, streamer=arrivals, **greedy)
        return arrivals.calls[1:]

    def _rate(self) -> float:
        """Tokens per second, the best of a few trials."""
        self.generate(prompt(0), 2)  # warms up
        trials = [self.generate(prompt(number), TRIAL_TOKENS) for number in range(TRIALS)]
        return max(len(arrivals) / arrivals[-1] for arrivals in trials)

    def _load(self, directory: str, dtype: str) -> None:
        self.model: Any = None  # the one before is freed first
        loaded: Any = MixtralForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model = loaded.to(DEVICE)


def main(directory: str) -> None:
    disable_progress_bar()
    peer = Peer(directory)
    print(json.dumps({"choice": peer.choice, "tried": peer.trials}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(peer.generate(question["prompt"], question["max_tokens"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
