"""Finds tile sizes of the kernels on the GPU at hand, and writes them down: `python -m benchmarks.gpu.tune --help`.

The search goes downhill from the line that the table has for an operation, kind of weights and number of tokens. In
each round every size is halved and doubled by itself; then all changes that helped are tried together. A round has some
ten candidates, which threads compile at the same time, and takes three or four seconds; a line takes three to six
rounds. Nine minutes are enough for some thirty lines: the most important ones come first, and each is written at once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.attention import AttentionCase
from benchmarks.gpu.clock import Calls, CudaClock
from benchmarks.gpu.experts import COPIES, Products, RoutedTokens
from benchmarks.gpu.inputs import experts_of
from benchmarks.gpu.run import Run
from octavo.model.kernels.gpu import configs
from octavo.model.kernels.gpu.attention_plan import LONGEST
from octavo.model.kernels.gpu.configs import ANY, Config, Entry, Table, shape_of
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.precision import SHORT

GAIN = 0.02  # a smaller gain is noise
SECONDS = 0.05  # that a pass of the clock takes
THREADS = 8  # that compile
BOUNDS = {
    "rows": (16, 256),
    "tokens": (8, 128),
    "inputs": (16, 512),
    "splits": (1, 16),
    "warps": (2, 16),
    "stages": (1, 7),
}
# The most important lines come first. 4096 tokens stand for every larger number in a prefill.
KINDS = ("int8", "bf16", "int4", "fp8")  # a line of int8 serves int8 in groups, too
ROUNDS = (
    (("int8", "bf16"), (1, 8, 64)),
    (("int4", "fp8"), (1, 8, 64)),
    (KINDS, (32, 256, 4096)),
    (KINDS, (2, 16, 128)),
)
LONGEST_PREFILL = 8192
DECODING, PREFILLING = [(1, 1024)] * 64, [(2048, 2048)]
ATTENTION = "attention"  # counts as one of the kinds


@dataclass(frozen=True, slots=True)
class Job:
    """A Job is one line of the table that is searched for."""

    entry: Entry
    shape: tuple[int, int]
    start: Config
    free: tuple[str, ...]  # the sizes that may be changed
    calls: Callable[[Config], Calls]  # may raise: too much shared memory, a shape that the compiler refuses

    def seconds(self, config: Config) -> float:
        """Returns infinity for a configuration that does not work: triton and drivers raise many classes for that."""
        try:
            return CudaClock(SECONDS).time(self.calls(config)).median
        except Exception as error:
            print(f"  refused: {config}: {error!r:.120}", file=sys.stderr)
            return inf

    def compile(self, configs: Sequence[Config]) -> None:
        """Runs all at the same time, so that they compile together. Failures are told when they are timed."""

        def run(config: Config) -> None:
            with suppress(Exception):
                self.calls(config)[0]()

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(run, configs))


def descend(
    start: Config,
    free: Sequence[str],
    time: Callable[[Config], float],
    prepare: Callable[[Sequence[Config]], None] = lambda configs: None,
) -> tuple[Config, float]:
    """Returns the best configuration found from the start, and its seconds; calls prepare(configs) before `time`."""
    known: dict[Config, float] = {}

    def look_at(configs: Iterable[Config]) -> None:
        new = [config for config in configs if config not in known]
        prepare(new)
        known.update((config, time(config)) for config in new)

    look_at([start])
    best = start
    while True:
        around = list(neighbours(best, free))
        look_at(around)
        better = sorted((c for c in around if known[c] < (1 - GAIN) * known[best]), key=known.__getitem__)
        if not better:
            return best, known[best]
        together = best
        for config in reversed(better):  # the better of two values of one size comes last, and stays
            together = replace(together, **changes(best, config))
        look_at([together])
        best = min(better[0], together, key=known.__getitem__)


def neighbours(config: Config, free: Sequence[str]) -> Iterator[Config]:
    """Yields configurations in which one size is halved or doubled, or the stages are one less or more."""
    for name in free:
        value: int = getattr(config, name)
        low, high = BOUNDS[name]
        for other in (value - 1, value + 1) if name == "stages" else (value // 2, value * 2):
            if low <= other <= high:
                yield replace(config, **{name: other})


def changes(before: Config, after: Config) -> dict[str, int]:
    """Returns the sizes of `after` that differ."""
    old, new = asdict(before), asdict(after)
    return {name: new[name] for name in new if new[name] != old[name]}


def settle(table: Table, job: Job, config: Config) -> None:
    """Puts a line into the table, and with a shape's first line copies of the general lines that it would hide.

    A lookup takes the lines of a shape, if there are any, before the general ones.
    """
    entry = job.entry
    if not any(replace(entry, up_to=other.up_to) == other for other in table):
        general = {other.up_to for other in table if (other.op, other.kind, other.shape) == (entry.op, entry.kind, ANY)}
        for tokens in general:
            table[replace(entry, up_to=tokens)] = configs.choose(entry.op, entry.kind, job.shape, tokens, entry.arch)
    table[entry] = config


def jobs(run: Run, kinds: Sequence[str], tokens: Sequence[int] | None) -> Iterator[Job]:
    """Yields the most important first. Each is made when its turn comes: it may build on what was found before."""

    @cache
    def weights(kind: str) -> list[ExpertWeights]:
        return [experts_of(run.config, run.kind(kind), run.device) for _ in range(COPIES)]

    for number, (of_kinds, counts) in enumerate(ROUNDS):
        for count in counts if tokens is None else [count for count in counts if count in tokens]:
            for kind in (kind for kind in of_kinds if kind in kinds):
                routed = RoutedTokens.random(run.config, count, run.dtype, run.device)
                yield from _products(Products.of(run, routed, weights(kind)))
        if number == 0 and ATTENTION in kinds:
            yield from _attention(run)


def _products(products: Products) -> Iterator[Job]:
    tokens, arch = len(products.tokens.x), products.run.arch
    up_to = LONGEST_PREFILL if tokens > 1024 else tokens
    for op, stacks in zip(products.ops, (products.gate_ups, products.downs), strict=True):
        free = ["rows", "warps", "stages"]
        free += ["inputs"] if stacks[0].kind != "int4" else []  # int4's tiles are its groups
        # Both products take the same tiles of pairs, whose size is in gate_up's line.
        free += ["tokens"] if op == products.ops[0] else ["splits"]
        kind, shape = configs.SAME_BYTES.get(stacks[0].kind, stacks[0].kind), stacks[0].shape
        entry = Entry(arch, op, kind, shape_of(shape), up_to)
        yield Job(entry, shape, products.config(op), tuple(free), partial(products.calls, op))


def _attention(run: Run) -> Iterator[Job]:
    """Yields the jobs of sequences that decode, and of prompts."""
    shape = run.config.num_attention_heads // run.config.num_key_value_heads, run.config.head_dim
    free = ("inputs", "warps", "stages")
    for name, lengths, up_to, sizes in (
        ("short", DECODING, 1, free),
        ("long", PREFILLING, LONGEST, (*free, "rows")),
    ):
        case = AttentionCase.random(run, lengths)
        tiles = case.tiles()

        def calls(config: Config, name: str = name, case: AttentionCase = case) -> Calls:
            changed: Any = {name: config}
            return case.calls(replace(case.tiles(), **changed))

        entry = Entry(run.arch, "attention.attend", SHORT[run.dtype], shape_of(shape), up_to)
        yield Job(entry, shape, {"short": tiles.short, "long": tiles.long}[name], sizes, calls)
        run.forget()


def search(run: Run, made: Iterable[Job], log: "Log", ends: float) -> None:
    """Writes each line when it is found: the next one may build on it, and time may end before the last."""
    table = dict(configs.table())
    for job in made:
        if monotonic() > ends:
            run.say("the time is up; what was found is written")
            return
        if (known := log.found.get(job.entry)) is None:
            best, seconds = descend(job.start, job.free, job.seconds, job.compile)
            if seconds == inf:
                run.say(f"{job.entry.op} {job.entry.kind} {job.entry.up_to}: nothing near its line works")
                continue
            before = seconds if best == job.start else job.seconds(job.start)
            log.add(job.entry, best, before / seconds)
            run.say(
                f"{job.entry.op} {job.entry.kind} {job.entry.up_to}: {best}, {seconds * 1e6:.1f} us, "
                f"{before / seconds:.2f} times as fast as before"
            )
            known = best
        settle(table, job, known)
        configs.save(table)


class Log:
    """A Log keeps what was found in a file, from which a later run goes on."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ()
        documents = map(json.loads, lines)
        self.found = {Entry(**each["entry"]): Config(**each["config"]) for each in documents}

    def add(self, entry: Entry, config: Config, gain: float) -> None:
        self.found[entry] = config
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"entry": asdict(entry), "config": asdict(config), "gain": gain}) + "\n")


def main() -> int:
    arguments = _arguments()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device to tune for.")
    ends = monotonic() + arguments.seconds
    run = gpu_run.begin(torch.device("cuda"))
    kinds = [kind for kind in arguments.kinds if kind in (*run.kinds, ATTENTION)]
    search(run, jobs(run, kinds, arguments.tokens), Log(arguments.log), ends)
    print(configs.FILE)
    return 0


def _arguments() -> argparse.Namespace:
    tried = sorted(count for _, counts in ROUNDS[1:] for count in counts)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tune", description="Tunes the kernels' tile sizes.")
    parser.add_argument(
        "--kinds",
        type=lambda text: tuple(text.split(",")),
        default=(*KINDS, ATTENTION),
        metavar="LIST",
        help=f"some of {','.join((*KINDS, ATTENTION))} (default: all)",
    )
    parser.add_argument(
        "--tokens",
        type=lambda text: tuple(map(int, text.split(","))),
        metavar="LIST",
        help=f"some of {','.join(map(str, tried))} (default: all)",
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no line after this time (default: 540)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="add what is found to this file, and go on from it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
