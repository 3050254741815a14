"""The sections of benchmarks.peers: each starts its contenders, and measures them in turn in every round."""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tqdm import tqdm

from benchmarks.common.bandwidth import Bandwidth
from benchmarks.common.client import Target
from benchmarks.common.completions import burst
from benchmarks.common.figures import Round
from benchmarks.common.loads import Load
from benchmarks.common.memory import Peak
from benchmarks.common.process import Server
from benchmarks.peers.contenders import CONTENDERS, OCTAVO, SERVED_NAME, Setting, Worker, engine, server
from benchmarks.peers.figures import CLIENTS, EXPERT_TOKENS, LOADS, Figure, LayerFigure, Measured

Kind = TypeVar("Kind")

PROMPT_TOKENS, NEW_TOKENS = 64, 32  # over HTTP
LAYER_TIMES = 5  # of one layer in a round, each between two readings: memory may change its speed from second to second
WARM_UP = Load("warm up", streams=16, prompt_tokens=4, max_tokens=3)


@dataclass(frozen=True, slots=True)
class Run:
    """What a section needs, and where its figures go."""

    setting: Setting
    bandwidth: Bandwidth
    rounds: int
    contenders: Sequence[str]
    measured: dict[str, Measured]

    def among(self, *programs: str) -> list[str]:
        """Those of the contenders that belong to one of the programs; all where none is named."""
        return [name for name in self.contenders if not programs or CONTENDERS[name].program in programs]


def measure_engine(run: Run) -> None:
    """Prefill and decoding without HTTP."""
    with ExitStack() as stack:
        engines = {}
        # The largest first: what loading takes beside the weights is free again when the next one starts.
        for name in sorted(run.among(), key=lambda name: -CONTENDERS[name].expert_bytes):
            _say(f"starting {CONTENDERS[name].title}")
            engines[name] = stack.enter_context(engine(CONTENDERS[name], run.setting))
            engines[name].ask(WARM_UP)
        for load, name in _turns(run, LOADS, engines):
            one, figures = engines[name], run.measured[name].engine
            with _bandwidth(run) as seen:
                steps = one.ask(load)
            figures.setdefault(load.name, []).append(Figure(load.rate(steps), max(seen)))
        for name, one in engines.items():
            run.measured[name].form = one.form
            if one.start is not None:
                run.measured[name].starts["engine"] = one.start


def measure_experts(run: Run) -> None:
    """One layer's experts, of Octavo in each weight type."""
    with ExitStack() as stack:
        workers = {}
        for name in run.among(OCTAVO):
            if not CONTENDERS[name].serves:
                continue  # without the kernels, experts in fp16 are the same
            _say(f"starting {CONTENDERS[name].title}")
            workers[name] = stack.enter_context(engine(CONTENDERS[name], run.setting))
        for tokens, name in _turns(run, EXPERT_TOKENS, workers):
            worker, figures = workers[name], run.measured[name].experts
            assert isinstance(worker, Worker)
            for _ in range(LAYER_TIMES):
                with _bandwidth(run) as seen:
                    seconds, nbytes = worker.lines.ask({"expert_layer": tokens})
                figures.setdefault(tokens, []).append(LayerFigure(seconds, nbytes, *seen))


def measure_http(run: Run) -> None:
    """Clients that come at once."""
    random = Random(0)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in run.among():
            if not CONTENDERS[name].serves:
                continue
            _say(f"starting {CONTENDERS[name].title} as a server")
            servers[name] = stack.enter_context(server(CONTENDERS[name], run.setting))
            run.measured[name].starts["server"] = servers[name].start
            _burst(servers[name], 1, random)
        for clients, name in _turns(run, CLIENTS, servers):
            for _ in range(CLIENTS[clients]):
                run.measured[name].http.setdefault(clients, []).append(_burst(servers[name], clients, random))
        for name, one in servers.items():
            run.measured[name].served = Peak.of(one.process).anonymous


def _burst(one: Server, clients: int, random: Random) -> Round:
    target = Target("127.0.0.1", one.port, SERVED_NAME, NEW_TOKENS)
    # Ordinary ids of the benchmark model's vocabulary: no prompt begins like another, so no prefix cache helps.
    prompts = [[random.randrange(300, 32000) for _ in range(PROMPT_TOKENS)] for _ in range(clients)]
    return asyncio.run(burst(target, prompts))


def _turns(run: Run, kinds: Iterable[Kind], names: Iterable[str]) -> Iterator[tuple[Kind, str]]:
    """Every contender after the other, for each kind of work, in each round; with a progress bar."""
    turns = [(kind, name) for _ in range(run.rounds) for kind in kinds for name in names]
    bar: tqdm[tuple[Kind, str]]
    with tqdm(turns, dynamic_ncols=True) as bar:
        for kind, name in bar:
            bar.set_description(CONTENDERS[name].title)
            yield kind, name


@contextmanager
def _bandwidth(run: Run) -> Iterator[list[float]]:
    """Bytes a second right before and, once the context has ended, right after."""
    seen = [run.bandwidth.best()]
    yield seen
    seen.append(run.bandwidth.best())


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr)
