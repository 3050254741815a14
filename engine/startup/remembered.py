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

from octavo.engine.startup.sizing import FEWEST_STEP_TOKENS, measure_step_tokens

AS_LONG = 1.5  # times longer, or shorter
TRIES = 3  # The first step is longer: it wakes threads and touches everything for the first time.
STEPS = TRIES + 1  # that are run beside those of measure_step_tokens, at most

Seconds = Callable[[int], float]  # runs a step of so many tokens, and returns its time


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

    def step_tokens(self, seconds: Seconds) -> int:
        """Returns what was measured before, if that still holds; else measures, and writes it down if that can be."""
        if (known := self._read()) is not None and _holds(known[1], seconds):
            return known[0]
        found = measure_step_tokens(seconds)
        self._write(found, seconds(FEWEST_STEP_TOKENS))  # the first one was longer
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


def _holds(shortest: float, seconds: Seconds) -> bool:
    return any(shortest / AS_LONG < seconds(FEWEST_STEP_TOKENS) < shortest * AS_LONG for _ in range(TRIES))


def _processor() -> str:
    """Returns the name of the processor; "" where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    return ""
