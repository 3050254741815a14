"""The peak memory of a process and its children, sampled while they run."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.05  # seconds: loading a model takes many


def anonymous_bytes() -> int:
    """What this process holds for itself: RssAnon, which mapped files are no part of. 0 where Linux is not."""
    return _sizes(os.getpid())[0]


@dataclass(slots=True)
class Peak:
    """Bytes, the most seen so far."""

    anonymous: int = 0  # held by the processes for themselves: RssAnon
    resident: int = 0  # with the pages of mapped files: VmRSS

    @classmethod
    def of(cls, process: int) -> "Peak":
        """What it and all below it hold now."""
        peak = cls()
        peak.look(process)
        return peak

    def look(self, process: int) -> None:
        """Takes in what the process and all below it hold now."""
        sizes = [_sizes(one) for one in _family(process)]
        self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in sizes))
        self.resident = max(self.resident, sum(resident for _, resident in sizes))


@contextmanager
def watch(process: int) -> Iterator[Peak]:
    """The peak so far, for as long as the context lasts."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            peak.look(process)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _family(process: int) -> Iterator[int]:
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _read(path).split():
            yield from _family(int(child))


def _sizes(process: int) -> tuple[int, int]:
    """RssAnon and VmRSS; zeros of a process that has ended."""
    fields = dict(line.partition(":")[::2] for line in _read(Path(f"/proc/{process}/status")).splitlines())
    anonymous, resident = (int((fields.get(name) or "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    return anonymous, resident


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # it has ended meanwhile
        return ""
