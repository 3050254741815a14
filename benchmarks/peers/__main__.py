"""Measures Octavo beside transformers, llama.cpp and ik_llama.cpp: `python -m benchmarks.peers --help`.

All contenders have the same weights (benchmarks.common.checkpoint) and the same number of threads. Every round asks
each of them for the same work in turn, while the others are idle. The memory's bandwidth is measured before and after
each turn. Each runs in its best form: transformers with the implementation of the experts that is fastest for the load,
llama.cpp and ik_llama.cpp with the policy of their OpenMP threads that is fastest.

Without HTTP, Octavo runs its engine with scheduler and sampling, transformers its forward pass and cache with sampling,
and llama.cpp and ik_llama.cpp their own llama-batched-bench, which samples nothing. Over HTTP, all clients send at the
same moment; each prompt has 64 tokens, and each answer 32.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import checkpoint
from benchmarks.common.bandwidth import measured_bandwidth
from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP, obtain, version
from benchmarks.common.machine import describe, user_cache
from benchmarks.peers.contenders import CONTENDERS, DEFAULT, PROJECTS, Setting
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.report import ContenderFigures, PeersReport
from benchmarks.peers.sections import PeersRun, measure_engine, measure_experts, measure_http
from octavo.model.config import ModelConfig

SECTIONS: dict[str, Callable[[PeersRun], None]] = {
    "engine": measure_engine,
    "experts": measure_experts,
    "http": measure_http,
}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as for Ctrl-C, all processes are ended first
    machine = describe()  # before the run, so that the load average is that of others
    model = arguments.model or checkpoint.obtain("sparse")
    llamas = _llamas(arguments)
    machine |= {name: version(one.project, one.programs) for name, one in llamas.items()}
    measured = {name: ContenderFigures() for name in arguments.peers}
    with tempfile.TemporaryDirectory() as scratch, measured_bandwidth(arguments.threads) as bandwidth:
        setting = Setting(model, arguments.threads, llamas, Path(scratch))
        run = PeersRun(setting, bandwidth, arguments.rounds, arguments.peers, measured)
        for section in arguments.sections:
            SECTIONS[section](run)
    machine["load_average_after"] = os.getloadavg()[0]
    config = ModelConfig.from_pretrained(model)
    report = PeersReport(machine, config, arguments.threads, arguments.rounds, measured)
    print(report.markdown())
    file = arguments.json or _results(arguments.sections)
    file.write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    print(f"\nevery round: {file}", file=sys.stderr)
    return 1 if any(one.failed for one in measured.values()) else 0


def _llamas(arguments: argparse.Namespace) -> dict[str, LlamaCpp]:
    """Returns llama.cpp and ik_llama.cpp, as far as one of their forms is asked for; they are built if need be."""
    directories = {LLAMA_CPP: arguments.llama_cpp, IK_LLAMA_CPP: arguments.ik_llama_cpp}
    wanted = {CONTENDERS[name].program for name in arguments.peers}
    return {
        name: LlamaCpp(project, obtain(project, directories[project], user_cache()))
        for name, project in PROJECTS.items()
        if name in wanted
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Measures Octavo beside transformers, llama.cpp and ik_llama.cpp.",
    )
    parser.add_argument(
        "--sections", type=_names_in(SECTIONS), default=list(SECTIONS), help=f"{_some_of(SECTIONS)} (default: all)"
    )
    parser.add_argument(
        "--peers",
        type=_names_in(CONTENDERS),
        default=list(DEFAULT),
        help=f"{_some_of(CONTENDERS)} (default: all but octavo-fp16)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contender (default: 2)")
    parser.add_argument("--model", type=Path, help="directory of a checkpoint (default: the sparse model)")
    for project in PROJECTS.values():
        parser.add_argument(project.flag, type=Path, metavar="DIR", help="where it was built (default: it is built)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it here (default: in benchmarks/results)")
    return parser.parse_args()


def _results(sections: list[str]) -> Path:
    """Returns the file of these sections; a run of some sections does not overwrite one of others."""
    some = "" if len(sections) == len(SECTIONS) else f"-{'-'.join(sections)}"
    return Path(__file__).parent.parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-peers{some}-cpu.json"


def _names_in(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Returns a type of argument: known names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return names

    return parse


def _some_of(known: Mapping[str, object]) -> str:
    return f"some of {','.join(known)}"


if __name__ == "__main__":
    sys.exit(main())
