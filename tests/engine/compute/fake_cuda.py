"""What of torch.cuda a capture sees: streams, and an allocator that may be left in the middle of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

Pool = tuple[int, int]


class Stream:
    """It only is one."""

    def wait_stream(self, other: "Stream") -> None:
        pass


@dataclass
class FakeCuda:
    """Ends a capture as torch 2.11 does: an invalid one raises before the allocator hears of its end."""

    current: Stream = field(default_factory=Stream)
    captured_on: list[Stream] = field(default_factory=list)
    under_way: list[Pool] = field(default_factory=list)
    users: dict[Pool, int] = field(default_factory=dict)  # of each pool
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
