"""Remembers for later starts how many tokens a step should have, and asks one short step whether that still holds.

A file in the cache is about one model on one kind of machine. It also says how long the shortest step took. If that
takes as long again, nothing has changed that matters; else everything is measured anew.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AS_LONG = 1.5  # times longer, or shorter
TRIES = 3  # The first step is longer: it wakes threads and touches everything for the first time.
STEPS = 3 * TRIES  # that are run beside those of a measurement, at most


@dataclass(frozen=True, slots=True)
class Remembered:
    """A Remembered is a file in the cache."""

    path: Path

    @classmethod
    def of(cls, cache: Path, facts: dict[str, Any]) -> "Remembered":
        """Returns the file about these facts, and about the machine."""
        known = facts | {"processor": _processor(), "machine": platform.machine(), "count": os.cpu_count()}
        name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
        return cls(cache / "steps" / f"{name}.json")

    def step_tokens(
        self, shortest: Callable[[], float], measured: Callable[[], int], surely: Callable[[float], int]
    ) -> int:
        """Returns what was measured before, if that still holds; else measures, and writes it down if that can be.

        `shortest` runs the shortest step and returns its seconds; `measured` returns the tokens of a step; `surely`
        returns how many tokens a step may have at least, where the shortest one takes so many seconds. If fewer were
        measured, pages of the weights or other work held the steps up, and they are measured once more.
        """
        known = self._read()
        if known is not None and known[0] >= surely(known[1]) and _holds(known[1], shortest):
            return known[0]
        found, seconds = measured(), min(shortest() for _ in range(TRIES))
        if found < surely(seconds):
            found, seconds = measured(), min(shortest() for _ in range(TRIES))
        found = max(found, surely(seconds))
        self._write(found, seconds)
        return found

    def _read(self) -> tuple[int, float] | None:
        """Returns the tokens of a step, and the seconds of the shortest one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads(self.path.read_text("utf-8"))
            return int(values["step_tokens"]), float(values["shortest"])
        return None

    def _write(self, step_tokens: int, shortest: float) -> None:
        with suppress(OSError):  # Nobody depends on it.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps({"step_tokens": step_tokens, "shortest": shortest}), "utf-8")
            unfinished.rename(self.path)


def _holds(seconds: float, shortest: Callable[[], float]) -> bool:
    return any(seconds / AS_LONG < shortest() < seconds * AS_LONG for _ in range(TRIES))


def _processor() -> str:
    """Returns the name of the processor; "" where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    return ""
