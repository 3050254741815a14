"""Turns is a queue in which callers take turns: whoever asks for much waits for itself, and delays nobody else."""

from collections import OrderedDict, deque
from collections.abc import Container
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Turns holds the items of each caller in the order in which they came. A caller is an opaque name."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()  # no queue is empty; whose turn is next is first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def waiting(self, caller: str) -> int:
        """Returns how many items of a caller wait."""
        return len(self._queues.get(caller, ()))

    def add(self, caller: str, item: T) -> None:
        """Puts an item behind the caller's others."""
        self._queues.setdefault(caller, deque()).append(item)

    def take(self, passed_over: Container[str] = ()) -> tuple[str, T] | None:
        """Takes the oldest item of the caller whose turn it is; returns None when nobody else has any.

        Callers that are passed over keep their turn.
        """
        caller = next((caller for caller in self._queues if caller not in passed_over), None)
        if caller is None:
            return None
        queue = self._queues.pop(caller)
        item = queue.popleft()
        if queue:
            self._queues[caller] = queue  # behind all others
        return caller, item
