"""Measures quantised checkpoints of Mixtral 8x7B's true shape: `python -m benchmarks.peers.true_shape --help`.

The checkpoints hold random integers in the layouts of GPTQ and AWQ, 4 bits in groups of 128, and as many layers as are
asked for. They are loaded as they are and from tile files. llama.cpp loads GGUF files of the same shape in Q4_0 and in
the mixture Q4_K_M. Each is started in turn, alone, and asked for streams of random tokens.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common.bandwidth import measured_bandwidth
from benchmarks.common.figures import table_head, table_line
from benchmarks.common.llama_programs import LLAMA_CPP, obtain
from benchmarks.common.loads import Load
from benchmarks.common.machine import describe, user_cache
from benchmarks.common.process import json_lines, watch
from benchmarks.peers.llama_cpp import POLICIES, LlamaCpp
from benchmarks.peers.true_shape import checkpoints, gguf_files
from benchmarks.peers.true_shape.shape import LAYER_BYTES
from octavo.engine.api import Progress
from octavo.engine.config import EngineConfig
from octavo.engine.startup.machine import available_memory
from octavo.engine.startup.prepare import prepare
from octavo.model.config import ModelConfig

LOADS = (Load("1 stream", 1, 16, 17), Load("4 streams", 4, 16, 17), Load("16 streams", 16, 16, 17))
WARM_UP = Load("warm up", 1, 8, 3)
CACHE_TOKENS = 2048
DISK_COPIES = 6  # two checkpoints, their tile files, two GGUF files


@dataclass(slots=True)
class Figures:
    """Figures are what one contender took and reached."""

    seconds: float | None = None  # until it was ready
    anonymous: int | None = None  # bytes at most, until it was ready
    rates: dict[str, list[float]] = field(default_factory=dict)  # load -> tokens/s, a figure for each round

    def line(self, name: str) -> str:
        return table_line(
            name,
            "" if self.anonymous is None else f"{self.anonymous / 1e9:.2f}",
            "" if self.seconds is None else f"{self.seconds:.1f}",
            *(f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})" for rates in self.rates.values()),
        )


def main() -> None:
    arguments = _arguments()
    layers = arguments.layers or _most_layers(arguments.directory)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    models = {name: _checkpoint(arguments.directory, name, layers, arguments.seed) for name in checkpoints.METHODS}
    files = {
        name: _gguf(arguments.directory, name, ModelConfig.from_pretrained(models["gptq"]), arguments.seed)
        for name in ("Q4_0", "Q4_K_M")
    }
    for model in models.values():
        _prepare(model)
    if arguments.only_write:
        return
    llama = LlamaCpp(LLAMA_CPP, obtain(LLAMA_CPP, arguments.llama_cpp, user_cache()))
    threads = arguments.threads or torch.get_num_threads()
    found: dict[str, Figures] = {}
    with measured_bandwidth(threads) as bandwidth:
        bandwidths = [bandwidth.best()]
        for _ in range(arguments.rounds):
            _measure_all(found, models, files, llama, threads)
            bandwidths.append(bandwidth.best())
    print(f"{layers} of 32 layers; memory {min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f} GB/s")
    print(*table_head("", "peak RssAnon, GB", "seconds to load", *(f"{load.name}, tok/s" for load in LOADS)), sep="\n")
    print(*(figures.line(name) for name, figures in found.items()), sep="\n")
    if arguments.output:
        document = {"machine": describe(), "layers": layers, "bandwidths": bandwidths}
        document |= {"figures": {name: asdict(figures) for name, figures in found.items()}}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


def _measure_all(
    found: dict[str, Figures], models: dict[str, Path], files: dict[str, Path], llama: LlamaCpp, threads: int
) -> None:
    """Lets each contender take its turn, and tells what it has reached so far."""
    for name, model in models.items():
        for mapped in (False, True):
            title = f"Octavo, {name.upper()}{', tile file' if mapped else ''}"
            figures = found.setdefault(title, Figures())
            _measure_octavo(figures, model, mapped, threads)
            print(figures.line(title), file=sys.stderr)
    for name, file in files.items():
        figures = found.setdefault(f"llama.cpp {name}", Figures())
        _measure_llama(figures, llama, file, threads)
        print(figures.line(f"llama.cpp {name}"), file=sys.stderr)


def _checkpoint(directory: Path, method: str, layers: int, seed: int) -> Path:
    with _bar(f"checkpoint in {method.upper()}") as report:
        return checkpoints.write(directory / f"mixtral-{layers}-layers-{method}", method, layers, seed, report)


def _gguf(directory: Path, name: str, config: ModelConfig, seed: int) -> Path:
    path = directory / f"mixtral-{config.num_hidden_layers}-layers-{name}.gguf"
    with _bar(f"GGUF file in {name}") as report:
        return gguf_files.write(path, name, config, seed, report)


def _prepare(model: Path) -> None:
    with _bar(f"tile file of {model.name}") as report:

        def progress(made: Progress) -> None:
            report(made.done, made.total)

        prepare(EngineConfig(model=str(model)), None, progress)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    bar: Any = tqdm(desc=what, dynamic_ncols=True, disable=None)
    with bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _measure_octavo(figures: Figures, model: Path, mapped: bool, threads: int) -> None:
    """Starts an engine that reads the checkpoint, or maps its tile file, and asks it."""
    (tiles,) = model.glob("*.tiles")
    hidden = tiles.with_suffix(".away")
    if not mapped:
        tiles.rename(hidden)
    try:
        _ask_octavo(figures, model, threads)
    finally:
        if not mapped:
            hidden.rename(tiles)


def _ask_octavo(figures: Figures, model: Path, threads: int) -> None:
    config = ModelConfig.from_pretrained(model)
    cache = 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CACHE_TOKENS
    flags = ("--threads", str(threads), "--kv-cache-memory", str(cache), "--max-num-batched-tokens", "512")
    with json_lines([sys.executable, "-m", "benchmarks.common.engine", str(model), *flags]) as lines:
        with watch(lines.process) as peak:
            figures.seconds = lines.receive()["load_seconds"]
        figures.anonymous = max(figures.anonymous or 0, peak.anonymous)
        lines.ask(WARM_UP.question)
        for load in LOADS:
            ends = [(seconds, tokens) for seconds, tokens in lines.ask(load.question)["steps"]]
            figures.rates.setdefault(load.name, []).append(load.rate(ends))


def _measure_llama(figures: Figures, llama: LlamaCpp, file: Path, threads: int) -> None:
    """Runs llama.cpp's own benchmark; the time of the run beside its steps is that of loading."""
    for load in LOADS:
        started = perf_counter()
        ends = llama.measure(file, load, threads, POLICIES["passive"])
        if figures.seconds is None:
            figures.seconds = perf_counter() - started - ends[-1][0]
        figures.rates.setdefault(load.name, []).append(load.rate(ends))


def _most_layers(directory: Path) -> int:
    """Returns as many layers as half of the memory and what is free on the disk hold, at most the model's 32."""
    there = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    usage = os.statvfs(there)
    disk = 0.9 * usage.f_bavail * usage.f_frsize / DISK_COPIES
    return max(1, min(32, int(min(disk, available_memory() / 2) / LAYER_BYTES)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.true_shape",
        description="Measures quantised checkpoints of Mixtral 8x7B's true shape, with random weights.",
    )
    parser.add_argument("directory", type=Path, help="where the files lie, or are written: about 5 GB a layer")
    parser.add_argument("--layers", type=int, metavar="N", help="layers (default: what disk and memory hold)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of all contenders (default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each contender (default: torch's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default: 0)")
    parser.add_argument("--only-write", action="store_true", help="write the files and measure nothing")
    parser.add_argument(LLAMA_CPP.flag, type=Path, metavar="DIR", help="where it was built (default: it is built)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this file as JSON, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
