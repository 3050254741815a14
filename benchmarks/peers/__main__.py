"""Octavo beside transformers and llama.cpp: `python -m benchmarks.peers --help`.

The same weights (benchmarks.common.checkpoint), the same number of threads, one run. Every round asks all contenders
for the same work in turn, those that wait are idle, and what memory gives to threads that only read is measured before
and after each turn. Each of them runs in its best form: transformers with the implementation of the experts that is
fastest for the load, llama.cpp with OpenMP threads that wait in the way that suits it.

Without HTTP, Octavo is its engine with scheduler and sampling, transformers its forward pass and cache with sampling,
llama.cpp its own llama-batched-bench, which samples nothing. Over HTTP, all clients come at the same moment, each with
64 tokens of prompt, and want 32 more.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common.bandwidth import reader
from benchmarks.common.checkpoint import obtain
from benchmarks.common.machine import describe, user_cache
from benchmarks.peers import llama_cpp
from benchmarks.peers.contenders import CONTENDERS, DEFAULT, LLAMA, Setting
from benchmarks.peers.figures import Measured
from benchmarks.peers.report import Report
from benchmarks.peers.sections import Run, measure_engine, measure_experts, measure_http
from octavo.model.config import ModelConfig

SECTIONS: dict[str, Callable[[Run], None]] = {
    "engine": measure_engine,
    "experts": measure_experts,
    "http": measure_http,
}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as Ctrl-C: what was started is ended first
    machine = describe()  # the load average is the one before the run
    model = arguments.model or obtain("sparse")
    programs = arguments.llama_cpp or Path()
    machine["llama.cpp"] = "took no part"
    if any(CONTENDERS[name].program == LLAMA for name in arguments.peers):
        programs = llama_cpp.obtain(arguments.llama_cpp, user_cache())
        machine["llama.cpp"] = llama_cpp.version(programs)
    measured = {name: Measured() for name in arguments.peers}
    with tempfile.TemporaryDirectory() as scratch, reader(arguments.threads) as bandwidth:
        setting = Setting(model, arguments.threads, programs, Path(scratch))
        run = Run(setting, bandwidth, arguments.rounds, arguments.peers, measured)
        for section in arguments.sections:
            SECTIONS[section](run)
    machine["load_average_after"] = os.getloadavg()[0]
    config = ModelConfig.from_pretrained(model)
    report = Report(machine, config, arguments.threads, arguments.rounds, measured)
    print(report.markdown())
    file = arguments.json or _results(arguments.sections)
    file.write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    print(f"\nevery round: {file}", file=sys.stderr)
    return 1 if any(one.failed for one in measured.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Measures Octavo beside transformers and llama.cpp."
    )
    parser.add_argument(
        "--sections", type=_some_of(SECTIONS), default=list(SECTIONS), help=f"{_list(SECTIONS)} (default: all)"
    )
    parser.add_argument(
        "--peers",
        type=_some_of(CONTENDERS),
        default=list(DEFAULT),
        help=f"{_list(CONTENDERS)} (default: all but octavo-fp16)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="of each contender (default: 2)")
    parser.add_argument("--model", type=Path, help="directory of a checkpoint (default: the sparse benchmark model)")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="its programs (default: they are built)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round (default: in benchmarks/results)")
    return parser.parse_args()


def _results(sections: list[str]) -> Path:
    """A run of some sections does not overwrite one of others."""
    some = "" if len(sections) == len(SECTIONS) else f"-{'-'.join(sections)}"
    return Path(__file__).parent.parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-peers{some}-cpu.json"


def _some_of(known: dict[str, object]) -> Callable[[str], list[str]]:
    """Reads names with commas between them."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return names

    return read


def _list(known: dict[str, object]) -> str:
    return f"some of {','.join(known)}"


if __name__ == "__main__":
    sys.exit(main())
