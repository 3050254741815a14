"""Captures steps that decode as CUDA graphs, one for each of a few numbers of rows, and replays each as one launch.

A step is some hundreds of kernels, and launching them one by one from Python takes longer than a small batch computes.
A graph launches them all, but on the addresses, shapes and grids of its capture:

    rows of the step   a7 b3 c9                          3 rows, so the graph of 4
    static inputs      a7 b3 c9 --     padding has slot -1 and kv_len 0: see model/batch.py
    replay             hidden, logits  [4, V], routes  [4, L, k]
    static outputs     a  b  c  --     the first 3 are the step's; sampling is no part of the graph

All graphs run on one stream in the order of the steps. So a graph's inputs are overwritten after the kernels that read
them, and its logits and routes after the sampling and the copy to the host.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from octavo.engine.api import Progress, ReportProgress
from octavo.engine.compute.tensors import BatchSizes, PendingTokens, on_host
from octavo.engine.config import EngineConfig
from octavo.engine.schedule.batch import Batch, Row
from octavo.model.batch import ForwardBatch
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.routes import Routes

GRAPH_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Result = TypeVar("Result")
Outcome = tuple[Tensor, Routes | None]  # logits [R, V] and the routes of as many tokens
Replay = Callable[[], Outcome]  # computes the result again in the same place, from the inputs of that moment
Capture = Callable[[Callable[[], Outcome]], Replay]


@dataclass(frozen=True, slots=True)
class Graph:
    """A Graph is one captured step, with the inputs that it reads."""

    sizes: BatchSizes
    block_size: int
    inputs: Tensor  # [sizes.nbytes] uint8
    tokens: Tensor  # [T] int64, a part of `inputs`
    replay: Replay

    def run(self, batch: Batch, pending: PendingTokens | None = None) -> Outcome:
        """Computes the batch into the cache.

        Returns the logits [R, V] of its rows, and routes of which the first R are theirs. A later step overwrites both.
        """
        host = on_host(batch, self.sizes, self.block_size, self.inputs.device, pending)
        self.inputs.copy_(host, non_blocking=True)
        if pending is not None:
            pending.put_into(self.tokens)
        logits, routes = self.replay()
        return logits[: len(batch.rows)], routes


@dataclass(frozen=True, slots=True)
class Graphs:
    """Graphs are the graphs that were captured. Without any, every step is launched kernel by kernel."""

    by_rows: Mapping[int, Graph] = field(default_factory=dict)
    description: tuple[str, ...] = ()  # lines for the log

    def find(self, batch: Batch) -> Graph | None:
        """Returns the smallest graph that holds the batch, or None if there is none or a row does more than decode."""
        if not all(_decodes(row) for row in batch.rows):
            return None
        fitting = [rows for rows in self.by_rows if rows >= len(batch.rows)]
        return self.by_rows[min(fitting)] if fitting else None


def _decodes(row: Row) -> bool:
    """Returns whether a row does what is captured: it computes one token and samples the next, and no more."""
    return len(row.tokens) == 1 and row.output is not None and not row.targets and row.params.experts is None


def graph_rows(max_num_seqs: int) -> tuple[int, ...]:
    """Returns for which numbers of rows there are graphs, ascending, if so many sequences may run at once."""
    return (*(rows for rows in GRAPH_ROWS if rows < max_num_seqs), min(max_num_seqs, GRAPH_ROWS[-1]))


@dataclass(frozen=True, slots=True)
class Stage:
    """A Stage is what all graphs have in common: the model, its cache, and the longest row of the block table."""

    model: Decoder
    cache: KVCache
    blocks: int

    def captured(self, rows: int, capture: Capture) -> Graph:
        """Returns a graph of so many rows, which are all padding during the capture.

        The lengths on the host are the largest possible ones. Operations that can be captured take their grids from
        shapes, and read on the device how long the rows are.
        """
        sizes = BatchSizes(tokens=rows, rows=rows, logit_rows=rows, blocks=self.blocks)
        device, block_size = self.model.device, self.cache.block_size
        inputs = on_host(Batch(()), sizes, block_size, device).to(device)
        batch = sizes.forward_batch(inputs, (1,) * rows, (self.blocks * block_size,) * rows)
        with torch.inference_mode():
            replay = capture(lambda: self._compute(batch))
        return Graph(sizes, block_size, inputs, batch.tokens, replay)

    def _compute(self, batch: ForwardBatch) -> Outcome:
        states, routes = self.model.states(batch, self.cache)
        return self.model.logits(states[batch.logit_rows]), routes


def stage_for(config: EngineConfig, model: Decoder, cache: KVCache, max_model_len: int) -> Stage | None:
    """Returns a stage, or None where device, operations or --enforce-eager rule CUDA graphs out."""
    if config.enforce_eager or model.device.type != "cuda" or not model.ops.capturable:
        return None
    return Stage(model, cache, -(-max_model_len // cache.block_size))


def capture_all(stage: Stage, rows: Sequence[int], capture: Capture, report: ReportProgress) -> Graphs:
    """Captures graphs of these numbers of rows. The largest comes first, since the others use the memory that it took.

    A failure costs speed, not the server: then there are no graphs, and the description says why.
    """
    found: dict[int, Graph] = {}
    try:
        for done, count in enumerate(sorted(rows, reverse=True)):
            report(Progress("capturing graphs", done, len(rows)))
            found[count] = stage.captured(count, capture)
    except RuntimeError as error:  # CUDA raised it, or an operation that cannot be captured
        reason = str(error).strip().split("\n")[0]
        line = f"Steps are launched kernel by kernel, which is slower: no CUDA graph could be captured ({reason})."
        return Graphs(description=(line,))
    report(Progress("capturing graphs", len(rows), len(rows)))
    return Graphs(found, (f"CUDA graphs for steps of up to {max(rows)} sequences",))


def measure(stage: Stage, rows: Sequence[int], capture: Capture, free: Callable[[], int]) -> tuple[int, int]:
    """Returns how many bytes of `free` memory the largest graph takes, and how many the smallest takes beside it.

    The stage may have a small trial cache, since a graph's memory does not depend on the cache. The result is
    (0, 0) if capturing fails.
    """
    kept, left = [], [free()]
    try:
        for count in (max(rows), min(rows)):
            kept.append(stage.captured(count, capture))
            left.append(free())
    except RuntimeError:
        return 0, 0
    return left[0] - left[1], left[1] - left[2]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the one stream of all captures. Libraries keep a workspace for each stream, so this saves memory."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class CudaCapture:
    """A CudaCapture captures on a stream beside the current one. Its graphs share memory: only one runs at a time.

    It raises RuntimeError where that fails. Everything but graphs then works as if it had not been tried.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        current, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # the current one comes back even when the capture fails
            run()  # compiles kernels and lets libraries take their workspaces, which a capture forbids
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    out = run()
            except RuntimeError:
                self._abandon()
                raise
        current.wait_stream(self._stream)

        def replay() -> Result:
            graph.replay()
            return out

        return replay

    def _abandon(self) -> None:
        """Tells torch's allocator that the capture has ended.

        torch does so only after the driver has ended it, which raises if the capture was invalid. While the allocator
        believes in a capture, it frees no memory, even when memory runs out.
        """
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # the capture has ended already: something else failed
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
