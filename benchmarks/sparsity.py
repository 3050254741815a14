"""Measures what sparsity buys: `python -m benchmarks.sparsity --help`.

Three models of random weights differ only in their feed-forward layers: a sparse one, a dense one with as many
parameters in all, and a dense one with as many active parameters. Each runs in the same engine, in a process of its
own. Every round asks all three for the same work in turn, so that a machine that slows down slows all of them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.checkpoint import SHAPES, obtain
from benchmarks.common.figures import Spread, table_head, table_line
from benchmarks.common.loads import Load, StepEnd
from benchmarks.common.machine import describe
from benchmarks.common.process import JsonLines, json_lines
from octavo.model.config import ModelConfig

SPARSE, SAME_TOTAL, SAME_ACTIVE = SHAPES
NAMES = {SPARSE: "sparse", SAME_TOTAL: "dense, same total", SAME_ACTIVE: "dense, same active"}
LOADS = (Load("1 stream", 1, 8, 33), Load("16 streams", 16, 8, 21), Load("prefill of 512", 1, 512, 1))
WARM_UP = Load("warm up", streams=16, prompt_tokens=8, max_tokens=3)

# All prompts of a load fit in one step; by default the engine would choose another size of steps for each model.
FLAGS = ("--max-num-batched-tokens", "512", "--kv-cache-memory", "64MiB")

# The page is seen behind the plot, so no colour is so light or so dark that it is lost on white or on black.
INK = "#7d858f"
COLOURS = ("#2a9d6f", "#8a7fd4", "#c98a2b")
STYLE: Any = {"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "sparsity", "text.color": INK}


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A ModelFigures is one model, and its tokens a second in each round of each load."""

    parameters: int
    active: int  # parameters that a token is multiplied with: those of the embedding are only looked up
    description: str
    load_seconds: float
    anonymous_bytes: int  # when it is loaded
    rounds: dict[str, list[float]] = field(default_factory=lambda: {load.name: [] for load in LOADS})

    @classmethod
    def of(cls, directory: Path, hello: dict[str, Any]) -> "ModelFigures":
        """Makes the figures of a model, without rounds, from the first line of its process."""
        config = ModelConfig.from_pretrained(directory)
        return cls(
            parameters=config.num_parameters(),
            active=config.num_active_parameters() - config.vocab_size * config.hidden_size,
            description=hello["description"][0],
            load_seconds=hello["load_seconds"],
            anonymous_bytes=hello["anonymous_bytes"],
        )

    def times(self, other: "ModelFigures", load: str) -> Spread:
        """Returns how many times as fast as another model it is, round by round."""
        return Spread.over(ours / theirs for ours, theirs in zip(self.rounds[load], other.rounds[load], strict=True))


def main() -> int:
    arguments = _arguments()
    machine = describe()  # before the run, so that the load average is that of others
    directories = {shape: obtain(shape) for shape in SHAPES}
    engines: dict[str, JsonLines] = {}
    measured: dict[str, ModelFigures] = {}
    with ExitStack() as stack:
        for shape, directory in directories.items():
            print(f"loading the {shape} model ...", file=sys.stderr)
            command = [sys.executable, "-m", "benchmarks.common.engine", str(directory), *FLAGS, *arguments.serve]
            engines[shape] = stack.enter_context(json_lines(command))
            measured[shape] = ModelFigures.of(directory, engines[shape].receive())
        _measure(engines, measured, arguments.rounds)
    print(table(machine, measured))
    if arguments.json is not None:
        found = document(machine, arguments.serve, measured)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        draw(measured, arguments.plot)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsity", description="Measures a sparse model against dense ones."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them to this file, as .svg or .png")
    parser.add_argument("serve", nargs="*", metavar="-- FLAGS", help="flags for octavo serve, after --, as --dtype")
    return parser.parse_args()


def _measure(engines: dict[str, JsonLines], measured: dict[str, ModelFigures], rounds: int) -> None:
    """Asks for every load in every round, one model after the other; the others are idle."""
    for engine in engines.values():
        _ask(engine, WARM_UP)
    turns = [(load, shape) for _ in range(rounds) for load in LOADS for shape in engines]
    bar: tqdm[tuple[Load, str]]
    with tqdm(turns, unit="load", dynamic_ncols=True) as bar:
        for load, shape in bar:
            bar.set_description(f"{shape}, {load.name}")
            measured[shape].rounds[load.name].append(load.rate(_ask(engines[shape], load)))


def _ask(engine: JsonLines, load: Load) -> list[StepEnd]:
    return [(seconds, tokens) for seconds, tokens in engine.ask(load.question)["steps"]]


def table(machine: dict[str, Any], measured: dict[str, ModelFigures]) -> str:
    """Returns what is printed at the end: the machine, a line for each model, and the ratios."""
    ratios = [
        table_line(
            f"sparse / {NAMES[other]}",
            *("",) * 3,
            *(measured[SPARSE].times(measured[other], load.name).cell(2) for load in LOADS),
        )
        for other in (SAME_TOTAL, SAME_ACTIVE)
    ]
    return "\n".join(
        (
            f"{machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load before the run {machine['load_average']:.2f}; "
            f"octavo {machine['octavo']}, torch {machine['torch']}, python {machine['python']}",
            *(f"{NAMES[shape]}: {one.description}" for shape, one in measured.items()),
            "",
            *table_head("", "parameters", "active", "memory", *(f"{load.name}, tokens/s" for load in LOADS)),
            *(_line(NAMES[shape], one) for shape, one in measured.items()),
            *ratios,
        )
    )


def _line(name: str, one: ModelFigures) -> str:
    parameters, active = f"{one.parameters / 1e9:.3f}B", f"{one.active / 1e9:.3f}B"
    rates = (Spread.over(one.rounds[load.name]).cell(1) for load in LOADS)
    return table_line(name, parameters, active, f"{one.anonymous_bytes / 1e9:.2f} GB", *rates)


def document(machine: dict[str, Any], flags: Sequence[str], measured: dict[str, ModelFigures]) -> dict[str, Any]:
    """Returns every round and the ratios, for JSON."""
    sparse = measured[SPARSE]
    return {
        "machine": machine,
        "flags": list(flags),
        "models": {shape: asdict(one) for shape, one in measured.items()},
        "sparse_over": {
            other: {load.name: asdict(sparse.times(measured[other], load.name)) for load in LOADS}
            for other in (SAME_TOTAL, SAME_ACTIVE)
        },
    }


def draw(measured: Mapping[str, ModelFigures], path: Path) -> None:
    """Draws a panel of bars for each load, and one for memory, in the format of the path's suffix."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = {
        f"{load.name}\ntokens/s": [Spread.over(one.rounds[load.name]) for one in measured.values()] for load in LOADS
    }
    panels["memory\nGB"] = [Spread.over([one.anonymous_bytes / 1e9]) for one in measured.values()]
    names = [
        f"{NAMES[shape]}\n{one.parameters / 1e9:.2f}B, {one.active / 1e9:.2f}B active"
        for shape, one in measured.items()
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        bars: Any = None
        for axes, (title, spreads) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            bars = _panel(axes, title, spreads)
        figure.legend(bars, names, loc="outside lower center", ncols=len(names), frameon=False)
        figure.savefig(path, transparent=True, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, title: str, spreads: Sequence[Spread]) -> Any:
    """Draws a bar for each model, with its median above it and its range as a whisker."""
    medians = [spread.median for spread in spreads]
    ranges = [[spread.median - spread.low for spread in spreads], [spread.high - spread.median for spread in spreads]]
    bars = axes.bar(range(len(spreads)), medians, color=COLOURS, width=0.72)
    axes.errorbar(range(len(spreads)), medians, ranges, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for index, spread in enumerate(spreads):
        axes.annotate(_short(spread.median), (index, spread.high), (0, 3), textcoords="offset points", ha="center")
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0, 1.15 * max(spread.high for spread in spreads))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    return bars


def _short(value: float) -> str:
    """Writes a number with about three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


if __name__ == "__main__":
    sys.exit(main())
