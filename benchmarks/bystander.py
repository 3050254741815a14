"""Measures what one client's load costs the others: `python -m benchmarks.bystander --help`.

A bystander streams an answer and asks for /health all the time. Meanwhile another client sends a hostile load: a body
of eight megabytes, or several. The first table tells how long the bystander had to wait, and what the API process used.
The second one tells what a flood of requests that are refused takes from those that are served.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import flood
from benchmarks.common.api_process import ApiProcess, Usage
from benchmarks.common.figures import milliseconds, percentile, table_head, table_line
from benchmarks.common.hostile import LOADS, Answer, Load, alternating_model, send
from benchmarks.common.machine import describe, user_cache
from benchmarks.common.process import Server, http_server
from benchmarks.common.witness import Seen, witness
from octavo.model.demo.default_model import build, default_directory

SETTLE = 12.0  # seconds after a load, in which memory may be given back
IDLE = 5.0  # seconds in which the cost of the bystander alone is measured
PLACES = 8  # requests that run or wait, in the flood
COLUMNS = (
    "load",
    "longest gap of the stream",
    "longest /health",
    "memory before",
    "peak",
    "after",
    "CPU a request",
    "small request after it",
    "answers",
)


def main() -> int:
    arguments = _arguments()
    sections = arguments.sections.split(",")
    model = arguments.model or build(default_directory(user_cache()), None, lambda what, done, total: None)
    machine = describe()
    print(f"{machine['cpu']}, {machine['threads']} threads; load before the run {machine['load_average']:.2f}\n")
    most = None if arguments.most_memory is None else int(arguments.most_memory * 2**30)
    with tempfile.TemporaryDirectory() as scratch:
        for program in arguments.octavo or [str(Path(sys.executable).with_name("octavo"))]:
            print(f"{program}\n")
            _measure(program, Path(model), sections, Path(scratch), most)
    return 0


def _arguments() -> argparse.Namespace:
    names = ("idle", *(load.name for load in LOADS), "flood")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bystander", description="Measures what one client's load costs the others."
    )
    parser.add_argument("--model", type=Path, help="directory of a checkpoint (default: the default model)")
    parser.add_argument(
        "--octavo", action="append", help="the program that is measured; repeat it to compare (default: this one)"
    )
    parser.add_argument("--sections", default=",".join(names), help="which loads are measured (default: %(default)s)")
    parser.add_argument("--most-memory", type=float, metavar="GIB", help="kill an API process that holds more")
    return parser.parse_args()


def _measure(program: str, model: Path, sections: Sequence[str], scratch: Path, most: int | None) -> None:
    """Prints the tables of one program. Each load gets a server of its own, so that none inherits memory."""
    chosen = [load for load in (Load("idle", "", bytes, clients=0), *LOADS) if load.name in sections]
    if chosen:
        print(*table_head(*COLUMNS), sep="\n")
    for load in chosen:
        with _serving(program, model, load, scratch) as server:
            print(summary(load, *_under(server, load, most)), flush=True)
    if "flood" in sections:
        with _server(program, model, scratch, "--max-num-seqs", "4", "--max-waiting", str(PLACES - 4)) as server:
            print("", *flood.table(asyncio.run(flood.measure(server.port, PLACES))), sep="\n", flush=True)
    print()


@contextmanager
def _serving(program: str, model: Path, load: Load, scratch: Path) -> Iterator[Server]:
    if not load.alternating:
        with _server(program, model, scratch) as server:
            yield server
        return
    with (
        tempfile.TemporaryDirectory(dir=scratch) as directory,
        alternating_model(model, Path(directory)) as copy,
        _server(program, copy, scratch) as server,
    ):
        yield server


@contextmanager
def _server(program: str, model: Path, scratch: Path, *flags: str) -> Iterator[Server]:
    command = [program, "serve", str(model), "--served-model-name", "m", *flags]
    with http_server(command, scratch / "server.log") as server:
        yield server


def _under(server: Server, load: Load, most: int | None) -> tuple[Seen, Usage, list[Answer], float]:
    """Sends the load while a witness watches; returns what was seen, the answers, and a small request's seconds."""
    process = ApiProcess(server.process, most)
    with witness(server.port) as watching:
        time.sleep(1.0)
        begun, cpu = time.monotonic(), process.cpu()
        time.sleep(IDLE)
        alone = (process.cpu() - cpu) / (time.monotonic() - begun)  # of a second: what the bystander costs
        watching.testify()
        begun = time.monotonic()
        with process.watched(SETTLE) as usage:
            if load.clients:
                answers, small = asyncio.run(send(server.port, load))
            else:
                time.sleep(IDLE)
                answers, small = [], 0.0
            usage_seconds = time.monotonic() - begun
        usage.cpu = max(usage.cpu - alone * usage_seconds, 0.0) / max(load.clients, 1)
        return watching.testify(), usage, answers, small


def summary(load: Load, seen: Seen, usage: Usage, answers: Sequence[Answer], small: float) -> str:
    """Returns the line of a load in the table; `small` is the time of the small request after it, in seconds."""
    statuses = Counter(answer.status for answer in answers)
    slowest = percentile([answer.seconds for answer in answers], 100)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) or "-"
    failures = "; failures: " + ", ".join(seen.failures[:3]) if seen.failures else ""
    return table_line(
        load.name,
        milliseconds(seen.gap),
        milliseconds(seen.health),
        *(f"{size / 1e6:.0f} MB" for size in (usage.before, usage.peak, usage.after)),
        milliseconds(usage.cpu),
        milliseconds(small),
        f"{counts} in {milliseconds(slowest)}{failures}",
    )


if __name__ == "__main__":
    sys.exit(main())
