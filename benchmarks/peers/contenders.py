"""Starts the contenders: Octavo in its weight types, transformers in two dtypes, llama.cpp and ik_llama.cpp in types of
GGUF files.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP
from benchmarks.common.loads import Load, StepEnd
from benchmarks.common.process import JsonLines, Server, Start, http_server, json_lines, octavo_server, watch
from benchmarks.peers.gguf_file import WeightBytes
from benchmarks.peers.llama_cpp import POLICIES, LlamaCpp
from octavo.model.config import ModelConfig

OCTAVO, TRANSFORMERS = "octavo", "transformers"
PROJECTS = {project.name: project for project in (LLAMA_CPP, IK_LLAMA_CPP)}
LLAMA, IK_LLAMA = PROJECTS
SERVED_NAME = "benchmark"

# All prompts of a load fit in one step, as in llama.cpp and transformers; over HTTP Octavo keeps its own budget.
ENGINE_FLAGS = ("--max-num-batched-tokens", "512")
CACHE_TOKENS = 8192  # that every server's cache holds
MOST_CLIENTS = 16

SLOW_TOKENS = 7  # of an answer from a slow engine
TRIAL = Load("trial", streams=1, prompt_tokens=16, max_tokens=17)


@dataclass(frozen=True, slots=True)
class Contender:
    """A Contender is one form of one program."""

    title: str
    program: str
    form: tuple[str, ...]  # flags of octavo serve, a dtype, or a type of GGUF file
    expert_bytes: float  # bytes of an expert's weight; more where a GGUF file mixes types
    linear_bytes: float  # bytes of a weight of attention and head; the same holds

    @property
    def serves(self) -> bool:
        """Says whether it can be asked over HTTP in this form."""
        return self.program != TRANSFORMERS and HIDE not in self.form


HIDE = "--without-kernels"  # a flag of benchmarks.common.engine, not of octavo serve
# Bytes of a weight. Octavo's scales are a byte for each 32 weights; half of the downs, a sixth of all, are in int8.
INT8, INT4 = 1 + 1 / 32, (5 * (0.5 + 1 / 32) + 1 + 1 / 32) / 6
Q8_0, Q4_0, Q4_K = 34 / 32, 18 / 32, 144 / 256

CONTENDERS = {
    "octavo-fp16": Contender("Octavo fp16", OCTAVO, ("--dtype", "float16"), 2.0, 2.0),
    "octavo-fp16-torch": Contender("Octavo fp16 without C kernels", OCTAVO, ("--dtype", "float16", HIDE), 2.0, 2.0),
    "octavo-int8": Contender("Octavo int8", OCTAVO, ("--quantization", "int8"), INT8, INT8),
    "octavo-int4": Contender("Octavo int4", OCTAVO, ("--quantization", "int4"), INT4, INT8),
    "transformers-fp32": Contender("transformers fp32", TRANSFORMERS, ("float32",), 4.0, 4.0),
    "transformers-bf16": Contender("transformers bf16", TRANSFORMERS, ("bfloat16",), 2.0, 2.0),
    "llama-f16": Contender("llama.cpp F16", LLAMA, ("F16",), 2.0, 2.0),
    "llama-q8_0": Contender("llama.cpp Q8_0", LLAMA, ("Q8_0",), Q8_0, Q8_0),
    "llama-q4_0": Contender("llama.cpp Q4_0", LLAMA, ("Q4_0",), Q4_0, Q4_0),
    "llama-q4_k_m": Contender("llama.cpp Q4_K_M", LLAMA, ("Q4_K_M",), Q4_K, Q4_K),
    "ik-q8_0": Contender("ik_llama.cpp Q8_0", IK_LLAMA, ("Q8_0",), Q8_0, Q8_0),
    "ik-q4_0": Contender("ik_llama.cpp Q4_0", IK_LLAMA, ("Q4_0",), Q4_0, Q4_0),
    "ik-q4_k_m": Contender("ik_llama.cpp Q4_K_M", IK_LLAMA, ("Q4_K_M",), Q4_K, Q4_K),
}


# All but one are measured by default: all would take more than 24 GB. The engine in fp16 is measured without kernels.
DEFAULT = tuple(name for name in CONTENDERS if name != "octavo-fp16")


@dataclass(frozen=True, slots=True)
class Setting:
    """A Setting is the same for all contenders."""

    model: Path
    threads: int
    llamas: Mapping[str, LlamaCpp]  # program -> ..., of those that take part
    logs: Path

    @property
    def cache_bytes(self) -> int:
        """Returns the bytes of CACHE_TOKENS in float32."""
        config = ModelConfig.from_pretrained(self.model)
        return 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CACHE_TOKENS

    def serve_flags(self, contender: Contender) -> tuple[str, ...]:
        return (*contender.form, *_flags({"--threads": self.threads, "--kv-cache-memory": self.cache_bytes}))


def _flags(values: dict[str, int]) -> tuple[str, ...]:
    return tuple(text for flag, value in values.items() for text in (flag, str(value)))


class MeasuredEngine(Protocol):
    """A MeasuredEngine is a contender without HTTP."""

    form: str  # the form that was found to be fastest; empty if there is only one

    @property
    def start(self) -> Start | None:
        """Returns what its start took; None: it starts anew for each load."""

    @property
    def weight_bytes(self) -> WeightBytes | None:
        """Returns those of its file; None if the contender's own are exact."""

    def ask(self, load: Load) -> list[StepEnd]:
        """Does the work once; returns when each step ended."""


class EngineProcess:
    """An EngineProcess is an engine in a process of its own, which answers lines of JSON."""

    form, weight_bytes = "", None

    def __init__(self, lines: JsonLines, start: Start, most_tokens: int) -> None:
        """Asks for `most_tokens` of an answer at most: if steps are long, a few of them show the rate."""
        self.lines, self.start, self._most_tokens = lines, start, most_tokens

    def ask(self, load: Load) -> list[StepEnd]:
        shortened = replace(load, max_tokens=min(load.max_tokens, self._most_tokens))
        answer = self.lines.ask(shortened.question)
        self.form = ", ".join(f"{kind}: {name}" for kind, name in answer.get("experts", {}).items())
        return [(seconds, tokens) for seconds, tokens in answer["steps"]]


class LlamaBench:
    """A LlamaBench is llama.cpp's own benchmark, with the policy of its threads that is faster at one stream."""

    start = None

    def __init__(self, contender: Contender, setting: Setting) -> None:
        self._llama, self._threads = setting.llamas[contender.program], setting.threads
        self.file = self._llama.file_of(setting.model, contender.form[0])
        self.weight_bytes = WeightBytes.of(self.file)
        trials = [(name, self._measure(TRIAL, name)) for name in (*POLICIES, *POLICIES)]
        rates = {name: max(TRIAL.rate(ends) for tried, ends in trials if tried == name) for name, _ in trials}
        self.policy = max(rates, key=rates.__getitem__)
        self.form = "threads " + ", ".join(f"{name}: {rate:.1f} tokens/s" for name, rate in rates.items())

    def ask(self, load: Load) -> list[StepEnd]:
        return self._measure(load, self.policy)

    def _measure(self, load: Load, policy: str) -> list[StepEnd]:
        return self._llama.measure(self.file, load, self._threads, POLICIES[policy])


@contextmanager
def start_engine(contender: Contender, setting: Setting) -> Iterator[MeasuredEngine]:
    """Runs a contender without HTTP, ready, and idle while it is not asked."""
    if contender.program in PROJECTS:
        yield LlamaBench(contender, setting)
        return
    with json_lines([sys.executable, "-m", *_engine_command(contender, setting)]) as lines:
        with watch(lines.process) as peak:
            hello = lines.receive()
        start = Start(hello["load_seconds"], peak.anonymous, peak.resident)
        yield EngineProcess(lines, start, SLOW_TOKENS if contender.program == TRANSFORMERS else sys.maxsize)


def _engine_command(contender: Contender, setting: Setting) -> tuple[str, ...]:
    if contender.program == TRANSFORMERS:
        peer = ("benchmarks.common.transformers_peer", "forward")
        return (*peer, str(setting.model), *contender.form, str(setting.threads))
    return ("benchmarks.common.engine", str(setting.model), *setting.serve_flags(contender), *ENGINE_FLAGS)


@contextmanager
def start_server(contender: Contender, setting: Setting) -> Iterator[Server]:
    """Runs a contender that is ready to be asked over HTTP."""
    log = setting.logs / f"{contender.title}.log"
    if contender.program == OCTAVO:
        flags = ("--served-model-name", SERVED_NAME, *setting.serve_flags(contender))
        with octavo_server(str(setting.model), flags, log) as ready:
            yield ready
        return
    bench = LlamaBench(contender, setting)
    flags = _flags({"--threads": setting.threads, "--parallel": MOST_CLIENTS, "--ctx-size": CACHE_TOKENS})
    command = (*setting.llamas[contender.program].server, "--model", str(bench.file.resolve()), *flags)
    with http_server(command, log, POLICIES[bench.policy], setting.logs) as ready:
        yield ready
