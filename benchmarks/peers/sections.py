"""Measures the sections of benchmarks.peers: each starts its contenders and measures them in turn in every round."""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tqdm import tqdm

from benchmarks.common.bandwidth import Bandwidth
from benchmarks.common.client import Target, burst
from benchmarks.common.figures import Round
from benchmarks.common.loads import Load
from benchmarks.common.process import PeakMemory, Server
from benchmarks.peers.contenders import (
    CONTENDERS,
    OCTAVO,
    SERVED_NAME,
    EngineProcess,
    Setting,
    start_engine,
    start_server,
)
from benchmarks.peers.report import CLIENTS, EXPERT_TOKENS, LOADS, ContenderFigures, LayerFigure, LoadFigure

Work = TypeVar("Work")

PROMPT_TOKENS, NEW_TOKENS = 64, 32  # over HTTP
LAYER_TIMES = 5  # in a round; the memory is measured before and after each, since its speed may change within a second
WARM_UP = Load("warm up", streams=16, prompt_tokens=4, max_tokens=3)


@dataclass(frozen=True, slots=True)
class PeersRun:
    """A PeersRun holds what a section needs, and takes its figures."""

    setting: Setting
    bandwidth: Bandwidth
    rounds: int
    contenders: Sequence[str]
    measured: dict[str, ContenderFigures]

    def among(self, *programs: str) -> list[str]:
        """Returns the contenders that belong to one of the programs; all if none is named."""
        return [name for name in self.contenders if not programs or CONTENDERS[name].program in programs]


def measure_engine(run: PeersRun) -> None:
    """Measures prefill and decoding without HTTP."""
    with ExitStack() as stack:
        engines = {}
        # The largest start first: loading takes memory beside the weights, which is free when the next one starts.
        for name in sorted(run.among(), key=lambda name: -CONTENDERS[name].expert_bytes):
            _say(f"starting {CONTENDERS[name].title}")
            engines[name] = stack.enter_context(start_engine(CONTENDERS[name], run.setting))
            engines[name].ask(WARM_UP)
        for load, name in _turns(run, LOADS, engines):
            one, figures = engines[name], run.measured[name].engine
            with _bandwidth(run) as bandwidths:
                ends = one.ask(load)
            figures.setdefault(load.name, []).append(LoadFigure(load.rate(ends), max(bandwidths)))
        for name, one in engines.items():
            run.measured[name].form = one.form
            run.measured[name].weight_bytes = one.weight_bytes
            if one.start is not None:
                run.measured[name].starts["engine"] = one.start


def measure_experts(run: PeersRun) -> None:
    """Measures one layer's experts, of Octavo in each weight type."""
    with ExitStack() as stack:
        engines = {}
        for name in run.among(OCTAVO):
            if not CONTENDERS[name].serves:
                continue  # experts in fp16 are the same without the kernels
            _say(f"starting {CONTENDERS[name].title}")
            engines[name] = stack.enter_context(start_engine(CONTENDERS[name], run.setting))
        for tokens, name in _turns(run, EXPERT_TOKENS, engines):
            engine, figures = engines[name], run.measured[name].experts
            assert isinstance(engine, EngineProcess)
            for _ in range(LAYER_TIMES):
                with _bandwidth(run) as bandwidths:
                    seconds, nbytes = engine.lines.ask({"expert_layer": tokens})
                figures.setdefault(tokens, []).append(LayerFigure(seconds, nbytes, *bandwidths))


def measure_http(run: PeersRun) -> None:
    """Measures clients that all send at once."""
    random = Random(0)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in run.among():
            if not CONTENDERS[name].serves:
                continue
            _say(f"starting {CONTENDERS[name].title} as a server")
            servers[name] = stack.enter_context(start_server(CONTENDERS[name], run.setting))
            run.measured[name].starts["server"] = servers[name].start
            _burst(servers[name], 1, random)
        for clients, name in _turns(run, CLIENTS, servers):
            for _ in range(CLIENTS[clients]):
                run.measured[name].http.setdefault(clients, []).append(_burst(servers[name], clients, random))
        for name, one in servers.items():
            run.measured[name].served = PeakMemory.now(one.process).anonymous


def _burst(one: Server, clients: int, random: Random) -> Round:
    target = Target("127.0.0.1", one.port, SERVED_NAME, NEW_TOKENS)
    # The ids are ordinary ones of the model's vocabulary. No prompt begins like another, so no prefix cache helps.
    prompts = [[random.randrange(300, 32000) for _ in range(PROMPT_TOKENS)] for _ in range(clients)]
    return asyncio.run(burst(target, prompts))


def _turns(run: PeersRun, works: Iterable[Work], names: Iterable[str]) -> Iterator[tuple[Work, str]]:
    """Yields every contender in turn, for each piece of work, in each round, with a progress bar."""
    turns = [(work, name) for _ in range(run.rounds) for work in works for name in names]
    bar: tqdm[tuple[Work, str]]
    with tqdm(turns, dynamic_ncols=True) as bar:
        for work, name in bar:
            bar.set_description(CONTENDERS[name].title)
            yield work, name


@contextmanager
def _bandwidth(run: PeersRun) -> Iterator[list[float]]:
    """Yields the bandwidth right before the work; adds the one right after when the context ends."""
    bandwidths = [run.bandwidth.best()]
    yield bandwidths
    bandwidths.append(run.bandwidth.best())


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)
