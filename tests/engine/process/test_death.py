"""A process that dies is recognised before it is gone, and its end is put into words."""

import os
import signal
import subprocess
import sys
import time

import pytest

from octavo.engine.process.death import has_lost_its_memory, how_it_ended, past_mending
from tests.engine.process.support import PATIENCE


@pytest.mark.parametrize(
    ("exit_code", "clause"),
    [
        (None, "the engine process is gone"),
        (7, "the engine process ended with status 7"),
        (-6, "the engine process was killed by SIGABRT"),
        (-9, "the engine process was killed by SIGKILL, as happens when memory runs out"),
    ],
)
def test_the_end_of_a_process_is_a_clause(exit_code: int | None, clause: str) -> None:
    assert how_it_ended(exit_code) == clause


def test_only_an_unreadable_file_is_past_mending() -> None:
    assert "octavo prepare" in (past_mending(-signal.SIGBUS) or "")
    assert not any(past_mending(code) for code in (None, 0, 7, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_dying_process_is_told_from_a_silent_one() -> None:
    assert not has_lost_its_memory(os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not has_lost_its_memory(process.pid)
        process.kill()
        deadline = time.monotonic() + PATIENCE
        while not has_lost_its_memory(process.pid):  # Nobody has waited for it yet, so it does not vanish.
            assert time.monotonic() < deadline
    assert not has_lost_its_memory(process.pid)
