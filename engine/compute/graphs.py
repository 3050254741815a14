"""CUDA graphs: steps that decode are captured once for a few numbers of rows, and then replayed as one launch each.

A step is some hundreds of kernels, and launching them one by one from Python takes longer than a small batch computes.
A graph launches them all, but on the addresses, shapes and grids of its capture:

    rows of the step   a7 b3 c9                          3 rows, so the graph of 4
    static inputs      a7 b3 c9 --     slot -1, kv_len 0 in what is padding: see model/batch.py
    replay             hidden, logits  [4, V]
    static output      a  b  c  --     the first 3 are the step's; sampling is no part of the graph

All of them run on one stream in the order of the steps: a graph's inputs are overwritten behind the kernels that read
them, and its logits behind the sampling.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from octavo.engine.api import Progress, ReportProgress
from octavo.engine.compute.tensors import BatchSizes, Drawing, on_host
from octavo.engine.config import EngineConfig
from octavo.engine.schedule.batch import Batch
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

GRAPH_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # rows

Result = TypeVar("Result")
Replay = Callable[[], Tensor]  # computes the result again, from what is in the inputs by then, in the same place
Capture = Callable[[Callable[[], Tensor]], Replay]


@dataclass(frozen=True, slots=True)
class Graph:
    """One captured step, and the inputs that it reads."""

    sizes: BatchSizes
    block_size: int
    inputs: Tensor  # [sizes.nbytes] uint8
    tokens: Tensor  # [T] int64, a part of them
    replay: Replay

    def logits(self, batch: Batch, drawing: Drawing | None = None) -> Tensor:
        """Of each of the batch's rows, [R, V]; a later step overwrites them. Its keys and values are in the cache."""
        host = on_host(batch, self.sizes, self.block_size, self.inputs.device, drawing)
        self.inputs.copy_(host, non_blocking=True)
        if drawing is not None:
            drawing.put_into(self.tokens)
        return self.replay()[: len(batch.rows)]


@dataclass(frozen=True, slots=True)
class Graphs:
    """Those there are; without any, every step is launched kernel by kernel."""

    by_rows: Mapping[int, Graph] = field(default_factory=dict)
    description: tuple[str, ...] = ()  # lines for the log

    def find(self, batch: Batch) -> Graph | None:
        """The smallest that holds the batch; None when there is none, or a row does more than decode."""
        if any(len(row.tokens) > 1 or row.output is None or row.targets for row in batch.rows):
            return None
        fitting = [rows for rows in self.by_rows if rows >= len(batch.rows)]
        return self.by_rows[min(fitting)] if fitting else None


def graph_rows(max_num_seqs: int) -> tuple[int, ...]:
    """Of the graphs for steps of up to so many rows, ascending."""
    return (*(rows for rows in GRAPH_ROWS if rows < max_num_seqs), min(max_num_seqs, GRAPH_ROWS[-1]))


@dataclass(frozen=True, slots=True)
class Stage:
    """What every graph has in common: the model, its cache, and the longest row of its block table."""

    model: Decoder
    cache: KVCache
    blocks: int

    def captured(self, rows: int, capture: Capture) -> Graph:
        """A step of so many rows, of padding for now.

        The counts on the host are the largest there are. Ops that can be captured size their grids by shapes, and read
        how long the rows are on the device.
        """
        sizes = BatchSizes(tokens=rows, rows=rows, logit_rows=rows, blocks=self.blocks)
        device, block_size = self.model.device, self.cache.block_size
        inputs = on_host(Batch(()), sizes, block_size, device).to(device)
        batch = sizes.forward_batch(inputs, (1,) * rows, (self.blocks * block_size,) * rows)
        with torch.inference_mode():
            replay = capture(lambda: self.model.forward(batch, self.cache))
        return Graph(sizes, block_size, inputs, batch.tokens, replay)


def stage_for(config: EngineConfig, model: Decoder, cache: KVCache, max_model_len: int) -> Stage | None:
    """Where device and operations have CUDA graphs, and nobody said no."""
    if config.enforce_eager or model.device.type != "cuda" or not model.ops.capturable:
        return None
    return Stage(model, cache, -(-max_model_len // cache.block_size))


def capture_all(stage: Stage, rows: Sequence[int], capture: Capture, report: ReportProgress) -> Graphs:
    """Graphs of these numbers of rows, the largest first: what it took while it was captured serves the others.

    A failure costs time, not the server: then there are none, and the description says so.
    """
    found: dict[int, Graph] = {}
    try:
        for done, count in enumerate(sorted(rows, reverse=True)):
            report(Progress("capturing graphs", done, len(rows)))
            found[count] = stage.captured(count, capture)
    except RuntimeError as error:  # of CUDA, or of an operation that cannot be captured
        reason = str(error).strip().split("\n")[0]
        line = f"Steps are launched kernel by kernel, which is slower: no CUDA graph could be captured ({reason})."
        return Graphs(description=(line,))
    report(Progress("capturing graphs", len(rows), len(rows)))
    return Graphs(found, (f"CUDA graphs for steps of up to {max(rows)} sequences",))


def measure(stage: Stage, rows: Sequence[int], capture: Capture, free: Callable[[], int]) -> tuple[int, int]:
    """Bytes that the largest graph takes of the memory that is `free`, and that the smallest takes beside it.

    On a trial cache, before there is the real one: what a graph takes does not depend on it. (0, 0) when capturing
    fails; what it leaves is taken from nobody then.
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
    """One for all captures: libraries keep a workspace for each stream, which a trial has so taken for good."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class CudaCapture:
    """Captures on a stream beside the current one, into memory that its graphs share: only one of them runs at a time.

    Raises RuntimeError where that fails, and everything but graphs is then as if it had not been tried.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        current, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # and back to the current one, even when the capture fails
            run()  # once for real: kernels are compiled and libraries get their workspaces, which a capture forbids
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
        """Ends a capture for torch's allocator, too.

        torch does so behind the driver's end of it, which raises where the capture was invalid. As long as the
        allocator believes in a capture it gives back no memory, not even to whoever would run out of it.
        """
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # it has ended, and what failed was something else
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
