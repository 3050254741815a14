"""Watches the API process of a server: its memory and its CPU, with its helpers, and without the engine."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.05  # seconds between two looks
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """Holds bytes of resident memory and seconds of CPU."""

    before: int = 0
    peak: int = 0
    after: int = 0
    cpu: float = 0.0


class ApiProcess:
    """An ApiProcess is made once the server is ready: the engine and its helpers are the children of then."""

    def __init__(self, process: int, most: int | None = None) -> None:
        """`most`: the process is killed when it holds more bytes, before the machine runs out of memory."""
        self._process = process
        self._engine = frozenset(_children(process))
        self._most = most

    def resident(self) -> int:
        """Returns the bytes that the API process and its helpers hold now."""
        return sum(_resident(each) for each in self._family())

    def cpu(self) -> float:
        """Returns the seconds of CPU that they have used so far, those that have ended included."""
        return sum(_cpu(each) for each in self._family())

    def _family(self) -> list[int]:
        return [self._process, *(each for each in _children(self._process) if each not in self._engine)]

    @contextmanager
    def watched(self, settle: float) -> Iterator[Usage]:
        """Notes what the block uses. `after` is the memory `settle` seconds after it has ended."""
        usage, ended = Usage(before=self.resident()), threading.Event()
        cpu = self.cpu()

        def look() -> None:
            while not ended.wait(INTERVAL):
                usage.peak = max(usage.peak, self.resident())
                if self._most is not None and usage.peak > self._most:
                    os.kill(self._process, 9)
                    return

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield usage
        finally:
            usage.cpu = self.cpu() - cpu
            ended.set()
            thread.join()
            time.sleep(settle)
            usage.after = self.resident()


def _children(process: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:  # the thread has ended meanwhile
            continue
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # the process has ended meanwhile
        return 0


def _cpu(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * TICK  # its own time in both modes, and that of children that were waited for
