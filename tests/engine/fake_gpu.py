"""Imitates a GPU on a CPU, each part of it for other tests.

capturable, FakeCapture   operations that read lengths from tensors, and graphs that run a function again
FakeCuda                  the parts of torch.cuda that a capture calls
FakeMemory                a memory made of numbers
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo.engine.compute.graphs import Outcome, Replay
from octavo.engine.startup.sizing import GIB
from octavo.model.batch import ForwardBatch
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.ops.attention import Plan
from octavo.model.ops.seams import TORCH, Ops

Pool = tuple[int, int]


def reading_the_device() -> Ops:
    """Returns torch's operations, with lengths that they read from the batch's tensors when they run, as a GPU does."""

    def plan_attention(batch: ForwardBatch, cache: KVCache, window: int | None) -> Plan:
        q_lens, kv_lens = batch.q_starts.diff().tolist(), batch.kv_lens.tolist()
        now = replace(batch, q_lens_host=tuple(q_lens), kv_lens_host=tuple(kv_lens))
        return TORCH.plan_attention(now, cache, window)

    return replace(TORCH, plan_attention=plan_attention, capturable=True)


def capturable(model: Decoder) -> Decoder:
    """Returns the model with such operations, and without fused layers."""
    return replace(model, ops=reading_the_device(), fused=None)


def tensors(outcome: Outcome) -> list[Tensor]:
    """Returns what a graph overwrites when it is replayed."""
    logits, routes = outcome
    return [logits] if routes is None else [logits, routes.ids, routes.weights]


@dataclass
class FakeCapture:
    """A FakeCapture runs a function again instead of replaying a graph, and puts the result where the first one is."""

    fails_at: int | None = None  # which capture, counted from 0
    replays: list[int] = field(default_factory=list)  # the rows of each
    captured: list[int] = field(default_factory=list)  # the rows of each

    def __call__(self, run: Callable[[], Outcome]) -> Replay:
        if len(self.captured) == self.fails_at:
            raise RuntimeError("CUDA error: out of luck\nand many further lines")
        out = run()
        logits, routes = out
        self.captured.append(len(logits))

        def replay() -> Outcome:
            for there, new in zip(tensors(out), tensors(run()), strict=True):
                there.fill_(torch.nan if there.is_floating_point() else 0)
                there.copy_(new)
            self.replays.append(len(logits))
            return logits, routes

        return replay


class Stream:
    """A Stream does nothing, but one can be told from another."""

    def wait_stream(self, other: "Stream") -> None:
        pass


@dataclass
class FakeCuda:
    """FakeCuda ends a capture as torch 2.11 does: an invalid one raises before the allocator hears of its end."""

    current: Stream = field(default_factory=Stream)
    captured_on: list[Stream] = field(default_factory=list)
    under_way: list[Pool] = field(default_factory=list)
    users: dict[Pool, int] = field(default_factory=dict)  # how many graphs use each pool
    valid: bool = True

    def install(self, patch: pytest.MonkeyPatch) -> "FakeCuda":
        replaced = {
            "Stream": lambda device: Stream(),
            "current_stream": lambda device: self.current,
            "current_device": lambda: 0,
            "stream": self.on,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self.capture,
            "graph_pool_handle": lambda: (0, len(self.users) + 1),
        }
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        return self

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def capture(self, graph: SimpleNamespace, pool: Pool, stream: Stream) -> Iterator[None]:
        self.captured_on.append(stream)
        self.under_way.append(pool)
        self.users[pool] = self.users.get(pool, 0) + 1
        try:
            yield
        finally:
            if not self.valid:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.end(0, pool)

    def end(self, device: int, pool: Pool) -> None:
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, device: int, pool: Pool) -> None:
        self.users[pool] -= 1


@dataclass
class FakeMemory:
    """FakeMemory has 80 GiB, of which others hold 2. Every step of the probe has the same peak beside the weights."""

    total: int = 80 * GIB
    others: int = 2 * GIB
    weights: int = 50 * GIB
    step: int = 3 * GIB
    calls: list[str] = field(init=False, default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> "FakeMemory":
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self.calls.append("reset"))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: self.weights)
        patch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.weights + self.step)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (self.total - self.others - self.weights, self.total))
        patch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append("empty"))
        return self
