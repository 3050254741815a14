"""What sparsity buys: `python -m benchmarks.sparsity --help`.

Three models of random weights, which differ in their feed-forward layers alone, in the same engine: a sparse one, a
dense one with as many parameters in all, and a dense one with as many active parameters. Each has a process of its own;
every round asks all three for the same work in turn, so that a machine that slows down slows all of them.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.checkpoint import SHAPES, obtain
from benchmarks.common.loads import Load, Step
from benchmarks.common.machine import describe
from benchmarks.common.process import JsonLines, json_lines
from benchmarks.sparsity_figures import LOADS, Measured, report, table
from benchmarks.sparsity_plot import draw

# All prompts of a load in one step, for every model alike: left alone, the engine would choose for each its own.
FLAGS = ("--max-num-batched-tokens", "512", "--kv-cache-memory", "64MiB")
WARM_UP = Load("warm up", streams=16, prompt_tokens=8, max_tokens=3)


def main() -> int:
    arguments = _arguments()
    machine = describe()  # the load average is the one before the run
    directories = {shape: obtain(shape) for shape in SHAPES}
    peers: dict[str, JsonLines] = {}
    measured: dict[str, Measured] = {}
    with ExitStack() as stack:
        for shape, directory in directories.items():
            print(f"loading the {shape} model ...", file=sys.stderr)
            command = [sys.executable, "-m", "benchmarks.common.engine", str(directory), *FLAGS, *arguments.serve]
            peers[shape] = stack.enter_context(json_lines(command))
            measured[shape] = Measured.of(directory, peers[shape].read())
        _measure(peers, measured, arguments.rounds)
    print(table(machine, measured))
    if arguments.json is not None:
        document = report(machine, arguments.serve, measured)
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        draw(measured, arguments.plot)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsity", description="Measures a sparse model against dense ones."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as .svg or .png")
    parser.add_argument("serve", nargs="*", metavar="-- FLAGS", help="flags of octavo serve, after --, as --dtype")
    return parser.parse_args()


def _measure(peers: dict[str, JsonLines], measured: dict[str, Measured], rounds: int) -> None:
    """Every load in every round, by one model after the other; those that wait are idle."""
    for peer in peers.values():
        _ask(peer, WARM_UP)
    turns = [(load, shape) for _ in range(rounds) for load in LOADS for shape in peers]
    bar: tqdm[tuple[Load, str]]
    with tqdm(turns, unit="load", dynamic_ncols=True) as bar:
        for load, shape in bar:
            bar.set_description(f"{shape}, {load.name}")
            measured[shape].rounds[load.name].append(load.rate(_ask(peers[shape], load)))


def _ask(peer: JsonLines, load: Load) -> list[Step]:
    return [(seconds, tokens) for seconds, tokens in peer.ask(load.question)["steps"]]


if __name__ == "__main__":
    sys.exit(main())
