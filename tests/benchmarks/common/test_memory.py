"""A process is watched with its children, and when it has ended nothing fails."""

import subprocess
import sys

import pytest

from benchmarks.common.memory import Peak, watch

CHILD = "held = bytearray(b'x') * 40_000_000; print('ready', flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def test_the_peak_of_a_family() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with watch(process.pid) as peak:
            assert process.stdout is not None
            process.stdout.readline()
            peak.look(process.pid)
        process.communicate(b"\n")
    assert 40_000_000 < peak.anonymous < peak.resident


def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert Peak.of(process.pid) == Peak(0, 0)
