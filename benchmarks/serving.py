"""Measures how fast Octavo serves: `python -m benchmarks.serving --help`.

In every round the server answers a closed loop of 1, 4 and 16 streams, and transformers' `generate` answers the prompts
of the one stream. They take turns, so that a machine that slows down slows all of them; one is idle while the other
works. Only tokens that were really generated are counted.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from benchmarks.common.client import Target, chat, closed_loop
from benchmarks.common.figures import LoadSummary, Round, Sample, Spread, milliseconds, table_head, table_line
from benchmarks.common.machine import describe, user_cache
from benchmarks.common.process import JsonLines, json_lines, octavo_server
from benchmarks.common.prompts import prompt
from octavo.model.demo.default_model import build, default_directory

REQUESTS_PER_STREAM = {1: 4, 4: 3, 16: 2}  # streams -> requests that each of them sends in a round
SERVED_NAME = "benchmark"
COLUMNS = ("streams", "tokens/s: median (range)", "first token p50 / p95", "between tokens p50 / p95", "failed")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A Comparison is transformers' `generate` on the prompts of one stream."""

    choice: str  # its fastest dtype and implementation of the experts
    row: LoadSummary
    ratio: Spread  # Octavo's tokens/s at one stream divided by its own, round by round


@dataclass(frozen=True, slots=True)
class Results:
    """A Results holds a Round of each round, for each of Octavo's loads and for transformers."""

    peer_form: dict[str, Any]  # how transformers was run, and what it tried
    octavo: dict[int, list[Round]] = field(default_factory=lambda: {streams: [] for streams in REQUESTS_PER_STREAM})
    peer: list[Round] = field(default_factory=list)

    @property
    def summaries(self) -> list[LoadSummary]:
        return [LoadSummary.over(streams, rounds) for streams, rounds in self.octavo.items()]

    @property
    def comparison(self) -> Comparison:
        rounds = zip(self.octavo[1], self.peer, strict=True)
        ratio = Spread.over(ours.rate / theirs.rate for ours, theirs in rounds)
        return Comparison(self.peer_form["choice"], LoadSummary.over(1, self.peer), ratio)

    @property
    def errors(self) -> list[str]:
        rounds = [one for load in self.octavo.values() for one in load]
        return [sample.error for one in rounds for sample in one.samples if sample.error is not None]


def main() -> int:
    arguments = _arguments()
    model = arguments.model or str(_default_model())
    machine = describe()  # before the run, so that the load average is that of others
    results = _measure(model, arguments)
    print(table(machine, Path(model).name, results.summaries, results.comparison))
    for error in results.errors:
        print(f"failed: {error}", file=sys.stderr)
    if arguments.json is not None:
        document = {
            "machine": machine,
            "model": Path(model).name,
            "max_tokens": arguments.max_tokens,
            "rounds": arguments.rounds,
            "octavo": [asdict(summary) for summary in results.summaries],
            "transformers": asdict(results.comparison) | {"tried": results.peer_form["tried"]},
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if results.errors else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description="Measures octavo serve beside transformers."
    )
    parser.add_argument("--model", help="directory of a checkpoint with a chat template (default: the default model)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of an answer (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("serve", nargs="*", metavar="-- FLAGS", help="flags for octavo serve, after --")
    return parser.parse_args()


def _default_model() -> Path:
    return build(default_directory(user_cache()), None, lambda what, done, total: None)


def _measure(model: str, arguments: argparse.Namespace) -> Results:
    """Starts both sides, warms them up, and measures them in turn."""
    flags = ["--served-model-name", SERVED_NAME, *arguments.serve]
    with (
        tempfile.TemporaryDirectory() as scratch,
        json_lines([sys.executable, "-m", "benchmarks.common.transformers_peer", "generate", model]) as peer,
    ):
        print("transformers looks for its fastest form ...", file=sys.stderr)
        results = Results(peer.receive())
        bar: tqdm[Any]
        with octavo_server(model, flags, Path(scratch) / "server.log") as server:
            target = Target("127.0.0.1", server.port, SERVED_NAME, arguments.max_tokens)
            asyncio.run(chat(target, "Warm up."))
            total = arguments.rounds * (
                REQUESTS_PER_STREAM[1] + sum(streams * each for streams, each in REQUESTS_PER_STREAM.items())
            )
            with tqdm(total=total, unit="request", dynamic_ncols=True) as bar:
                _measure_rounds(results, target, peer, bar, arguments.rounds)
    return results


def _measure_rounds(results: Results, target: Target, peer: JsonLines, bar: "tqdm[Any]", rounds: int) -> None:
    given = 0
    for _ in range(rounds):
        for streams, each in REQUESTS_PER_STREAM.items():
            prompts = [prompt(given + number) for number in range(streams * each)]
            given += len(prompts)
            bar.set_description(f"octavo, {streams} streams")
            results.octavo[streams].append(asyncio.run(closed_loop(target, prompts, streams, bar.update)))
            if streams == 1:
                bar.set_description("transformers")
                results.peer.append(_ask(peer, prompts, target.max_tokens, bar))


def _ask(peer: JsonLines, prompts: Sequence[str], max_tokens: int, bar: "tqdm[Any]") -> Round:
    samples = []
    start = perf_counter()
    for text in prompts:
        arrivals = peer.ask({"prompt": text, "max_tokens": max_tokens})
        samples.append(Sample(len(arrivals), tuple(arrivals)))
        bar.update()
    return Round(tuple(samples), perf_counter() - start)


def table(machine: dict[str, Any], model: str, loads: Sequence[LoadSummary], comparison: Comparison) -> str:
    """Returns what is printed at the end: the machine, a line for each load, and the comparison."""
    one, most = loads[0], loads[-1]
    gain = most.tokens_per_second.median / one.tokens_per_second.median
    return "\n".join(
        (
            f"{model} on {machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load before the run {machine['load_average']:.2f}",
            ", ".join(f"{name} {machine[name]}" for name in ("octavo", "torch", "transformers", "python")),
            "",
            *table_head("", *COLUMNS),
            *(_line("Octavo", load) for load in loads),
            _line(f"transformers generate ({comparison.choice})", comparison.row),
            "",
            f"Octavo / transformers at one stream: {comparison.ratio.cell(2)}",
            f"Octavo at {most.streams} streams / at one: {gain:.2f}",
        )
    )


def _line(name: str, load: LoadSummary) -> str:
    return table_line(
        name,
        str(load.streams),
        load.tokens_per_second.cell(1),
        f"{milliseconds(load.first_token_p50)} / {milliseconds(load.first_token_p95)}",
        f"{milliseconds(load.inter_token_p50)} / {milliseconds(load.inter_token_p95)}",
        f"{load.failed} of {load.requests}",
    )


if __name__ == "__main__":
    sys.exit(main())
