"""Upload: tensors of a mapped file on their way to a device, piece by piece, through pinned memory.

A GPU copies from ordinary memory at a fraction of its link's speed, and the program waits meanwhile. So each thread
has a lane of its own: two pinned buffers by turns, one filled from the file while the other is copied by the GPU.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 32 << 20  # bytes, of each of a lane's two buffers
LANES = 8  # a thread copies from the page cache at a fraction of a link's speed, too


@dataclass(frozen=True, slots=True)
class Lane:
    """One thread's way to a GPU."""

    device: torch.device
    stream: torch.cuda.Stream
    buffers: tuple[Tensor, Tensor]  # of PIECE bytes, pinned
    free: tuple[torch.cuda.Event, torch.cuda.Event]  # when what was last put into a buffer has left it

    @classmethod
    def create(cls, device: torch.device) -> "Lane":
        first, second = (torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        return cls(device, torch.cuda.Stream(device), (first, second), (torch.cuda.Event(), torch.cuda.Event()))

    def send(self, rows: Tensor, turn: int) -> Tensor:
        """The rows on the device, once the lane's stream is there; at most PIECE bytes, through buffer `turn`."""
        self.free[turn].synchronize()
        staged = self.buffers[turn][: rows.nbytes].view(rows.dtype).view(rows.shape)
        arrived = staged.copy_(rows).to(self.device, non_blocking=True)
        self.free[turn].record(self.stream)
        return arrived


class Upload:
    """Takes stored tensors to one device; may be called from several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    def __call__(self, stored: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Consecutive rows of `stored` [n, ...] on the device, and the first one's index.

        The loop's body runs on the lane's stream; all that it enqueues there is done when the loop ends.
        """
        if self._device.type == "cpu":
            yield 0, stored
            return
        lane = self._lane()
        # Where the rows go may be memory that another stream has yet to fill with zeros.
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
