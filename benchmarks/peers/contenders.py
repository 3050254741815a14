"""Who is compared: Octavo in each of its weight types, transformers in two dtypes, llama.cpp in two file types."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from benchmarks.common.loads import Load, Step
from benchmarks.common.memory import watch
from benchmarks.common.process import JsonLines, Server, Start, http_server, json_lines, octavo_server
from benchmarks.peers import llama_cpp
from octavo.model.config import ModelConfig

OCTAVO, TRANSFORMERS, LLAMA = "octavo", "transformers", "llama.cpp"
SERVED_NAME = "benchmark"

# All prompts of a load in one step, as llama.cpp and transformers compute them; over HTTP Octavo keeps its own budget.
ENGINE_FLAGS = ("--max-num-batched-tokens", "512")
CACHE_TOKENS = 8192  # of keys and values, in every server
MOST_CLIENTS = 16

SLOW_TOKENS = 7
TRIAL = Load("trial", streams=1, prompt_tokens=16, max_tokens=17)


@dataclass(frozen=True, slots=True)
class Contender:
    """One form of one program."""

    title: str
    program: str
    form: tuple[str, ...]  # flags of octavo serve, a dtype, or a type of GGUF file
    expert_bytes: float  # of a weight
    linear_bytes: float  # of a weight of attention and head

    @property
    def serves(self) -> bool:
        """Whether it can be asked over HTTP in this form."""
        return self.program != TRANSFORMERS and HIDE not in self.form


HIDE = "--without-kernels"  # a flag of benchmarks.common.engine, not of octavo serve
INT8 = 1 + 2 / 32  # bytes of a weight, with a scale in 16 bits for each 32; llama.cpp's Q8_0 has the same

CONTENDERS = {
    "octavo-fp16": Contender("Octavo fp16", OCTAVO, ("--dtype", "float16"), 2.0, 2.0),
    "octavo-fp16-torch": Contender("Octavo fp16 without C kernels", OCTAVO, ("--dtype", "float16", HIDE), 2.0, 2.0),
    "octavo-int8": Contender("Octavo int8", OCTAVO, ("--quantization", "int8"), INT8, INT8),
    "octavo-int4": Contender("Octavo int4", OCTAVO, ("--quantization", "int4"), 0.5 + 4 / 32, INT8),
    "transformers-fp32": Contender("transformers fp32", TRANSFORMERS, ("float32",), 4.0, 4.0),
    "transformers-bf16": Contender("transformers bf16", TRANSFORMERS, ("bfloat16",), 2.0, 2.0),
    "llama-f16": Contender("llama.cpp F16", LLAMA, ("F16",), 2.0, 2.0),
    "llama-q8_0": Contender("llama.cpp Q8_0", LLAMA, ("Q8_0",), INT8, INT8),
}


# Left alone, all but one: together they would take more than 24 GB, and its engine is measured without the kernels.
DEFAULT = tuple(name for name in CONTENDERS if name != "octavo-fp16")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all of them."""

    model: Path
    threads: int
    programs: Path  # of llama.cpp; where it takes no part, nobody looks there
    logs: Path

    def file(self, contender: Contender) -> Path:
        return llama_cpp.file_of(self.model, contender.form[0], self.programs)

    @property
    def cache_bytes(self) -> int:
        """Of CACHE_TOKENS in float32."""
        config = ModelConfig.from_pretrained(self.model)
        return 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CACHE_TOKENS

    def serve_flags(self, contender: Contender) -> tuple[str, ...]:
        sizes = {"--threads": self.threads, "--kv-cache-memory": self.cache_bytes}
        return (*contender.form, *(str(part) for pair in sizes.items() for part in pair))


class Engine(Protocol):
    """One of them without HTTP."""

    start: Start | None  # None: it starts anew for each load
    form: str  # how it is run, where that was tried out

    def ask(self, load: Load) -> list[Step]:
        """Does the work once; the steps as they ended."""


class Worker:
    """An engine in a process of its own, which answers lines of JSON."""

    form = ""

    def __init__(self, lines: JsonLines, start: Start, most_tokens: int) -> None:
        """`most_tokens` of an answer are enough to know its rate: one whose steps are long takes few of them."""
        self.lines, self.start, self._most_tokens = lines, start, most_tokens

    def ask(self, load: Load) -> list[Step]:
        shortened = replace(load, max_tokens=min(load.max_tokens, self._most_tokens))
        answer = self.lines.ask(shortened.question)
        self.form = ", ".join(f"{kind}: {name}" for kind, name in answer.get("experts", {}).items())
        return [(seconds, tokens) for seconds, tokens in answer["steps"]]


class Bench:
    """llama.cpp's own benchmark, in the policy that is faster at one stream."""

    start = None

    def __init__(self, file: Path, setting: Setting) -> None:
        self._file, self._setting = file, setting
        trials = [(name, self._measure(TRIAL, name)) for name in (*llama_cpp.POLICIES, *llama_cpp.POLICIES)]
        rates = {name: max(TRIAL.rate(steps) for tried, steps in trials if tried == name) for name, _ in trials}
        self.policy = max(rates, key=rates.__getitem__)
        self.form = "threads " + ", ".join(f"{name}: {rate:.1f} tokens/s" for name, rate in rates.items())

    def ask(self, load: Load) -> list[Step]:
        return self._measure(load, self.policy)

    def _measure(self, load: Load, policy: str) -> list[Step]:
        setting = self._setting
        return llama_cpp.measure(setting.programs, self._file, load, setting.threads, llama_cpp.POLICIES[policy])


@contextmanager
def engine(contender: Contender, setting: Setting) -> Iterator[Engine]:
    """One that is ready, and idle while it is not asked."""
    if contender.program == LLAMA:
        yield Bench(setting.file(contender), setting)
        return
    with json_lines([sys.executable, "-m", *_worker(contender, setting)]) as lines:
        with watch(lines.process) as peak:
            hello = lines.read()
        start = Start(hello["load_seconds"], peak.anonymous, peak.resident)
        yield Worker(lines, start, SLOW_TOKENS if contender.program == TRANSFORMERS else sys.maxsize)


def _worker(contender: Contender, setting: Setting) -> tuple[str, ...]:
    if contender.program == TRANSFORMERS:
        return ("benchmarks.common.transformers_peer", str(setting.model), *contender.form, str(setting.threads))
    return ("benchmarks.common.engine", str(setting.model), *setting.serve_flags(contender), *ENGINE_FLAGS)


@contextmanager
def server(contender: Contender, setting: Setting) -> Iterator[Server]:
    """One that is ready to be asked over HTTP."""
    log = setting.logs / f"{contender.title}.log"
    if contender.program == OCTAVO:
        flags = ("--served-model-name", SERVED_NAME, *setting.serve_flags(contender))
        with octavo_server(str(setting.model), flags, log) as ready:
            yield ready
        return
    numbers = {"--threads": setting.threads, "--parallel": MOST_CLIENTS, "--ctx-size": CACHE_TOKENS}
    flags = tuple(str(part) for pair in numbers.items() for part in pair)
    command = (str(setting.programs / llama_cpp.SERVER), "--model", str(setting.file(contender)), *flags)
    policy = Bench(setting.file(contender), setting).policy
    with http_server(command, log, llama_cpp.POLICIES[policy]) as ready:
        yield ready
