"""Sends tensors of a mapped file to a device, piece by piece, through pinned memory.

A GPU copies from ordinary memory at a fraction of its link's speed, and the program waits meanwhile. So each thread has
a lane of its own: of two pinned buffers, one is filled from the file while the GPU copies the other.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 32 << 20  # bytes in each of a lane's two buffers
LANES = 8  # One thread copies from the page cache at only a fraction of a link's speed.


@dataclass(frozen=True, slots=True)
class Lane:
    """A Lane is one thread's way to a GPU."""

    device: torch.device
    stream: torch.cuda.Stream
    buffers: tuple[Tensor, Tensor]  # PIECE bytes each, pinned
    free: tuple[torch.cuda.Event, torch.cuda.Event]  # recorded once a buffer's last contents have left it

    @classmethod
    def create(cls, device: torch.device) -> "Lane":
        first, second = (torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        return cls(device, torch.cuda.Stream(device), (first, second), (torch.cuda.Event(), torch.cuda.Event()))

    def send(self, rows: Tensor, turn: int) -> Tensor:
        """Sends rows of at most PIECE bytes through buffer `turn`; they are there once the lane's stream is done."""
        self.free[turn].synchronize()
        staged = self.buffers[turn][: rows.nbytes].view(rows.dtype).view(rows.shape)
        arrived = staged.copy_(rows).to(self.device, non_blocking=True)
        self.free[turn].record(self.stream)
        return arrived


class Upload:
    """Takes stored tensors to one device; several threads may call it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    def __call__(self, stored: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields the index of the first of some consecutive rows of `stored` [n, ...], and these rows on the device.

        The loop's body runs on the lane's stream; all that it enqueues there is done when the loop ends.
        """
        if self._device.type == "cpu":
            yield 0, stored
            return
        lane = self._lane()
        # Another stream may have yet to fill the memory with zeros that the rows go to.
        lane.stream.wait_stream(torch.cuda.current_stream(self._device))
        at_once = max(1, PIECE * len(stored) // stored.nbytes)
        with torch.cuda.stream(lane.stream):
            for turn, first in enumerate(range(0, len(stored), at_once)):
                yield first, lane.send(stored[first : first + at_once], turn % 2)
        lane.stream.synchronize()

    def _lane(self) -> Lane:
        if not hasattr(self._own, "lane"):
            self._own.lane = Lane.create(self._device)
        lane: Lane = self._own.lane
        return lane
