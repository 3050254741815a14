"""Tells how far a training is: the loss, tokens a second and the time that is left for all of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Tell = Callable[[str, int, int, str], None]  # the work, what is done of it, all of it, and a note
SMOOTH = 0.9  # the share of the older losses in the one that is told


@dataclass(slots=True)
class Meter:
    """A Meter knows how many seconds all work was measured to take, and corrects that as the work goes on."""

    tell: Tell
    planned: float  # seconds of all work
    clock: Callable[[], float] = time.monotonic
    _done: float = field(default=0.0, init=False)  # planned seconds of what is done
    _skipped: float = field(default=0.0, init=False)  # of that, what an earlier run has done
    _began: float | None = field(default=None, init=False)
    _loss: float | None = field(default=None, init=False)

    def skip(self, seconds: float) -> None:
        """Counts work that an earlier run has done."""
        self._done += seconds
        self._skipped += seconds

    def begin(self) -> None:
        """Begins another piece of work, whose losses have nothing to do with those before."""
        self._loss = None
        if self._began is None:
            self._began = self.clock()

    def step(self, what: str, done: tuple[int, int], loss: float, cost: tuple[int, float]) -> None:
        """Tells that a step is done: which of how many, its loss, its tokens and the seconds that were planned."""
        tokens, seconds = cost
        self._done += seconds
        self._loss = loss if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * loss
        speed = tokens / max(1e-9, seconds * self._pace())
        note = f"loss {self._loss:.3f}, {speed:.0f} tokens/s, {self.left()} left"
        self.tell(what, *done, note)

    def advance(self, what: str, done: int, total: int, seconds: float) -> None:
        """Tells how far work without a loss is."""
        self._done += seconds
        self.tell(what, done, total, f"{self.left()} left")

    def left(self) -> str:
        """Returns the time until everything is done, in words."""
        seconds = max(0.0, self.planned - self._done) * self._pace()
        return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"

    def _pace(self) -> float:
        """Returns how many seconds a planned second has taken so far."""
        counted = self._done - self._skipped
        if self._began is None or counted <= 0:
            return 1.0
        return (self.clock() - self._began) / counted
