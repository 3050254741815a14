"""A measured process is asked, watched and ended; if it fails, the benchmark ends with a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.process import PeakMemory, http_server, json_lines, octavo_server, watch

HELD = "held = bytearray(b'x') * 40_000_000; print('ready', flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HELD!r}])"
ECHO = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def test_json_lines() -> None:
    with json_lines([sys.executable, "-c", ECHO]) as process:
        assert process.ask({"prompt": "x"}) == {"prompt": "x"}
        assert process.ask([1, 2]) == [1, 2]


def test_policy_is_passive_for_everyone() -> None:
    code = "import json, os; print(json.dumps(os.environ['OMP_WAIT_POLICY']))"
    with json_lines([sys.executable, "-c", code]) as process:
        assert process.receive() == "PASSIVE"


def test_peer_that_ends_is_said_to_have_ended() -> None:
    with json_lines([sys.executable, "-c", "pass"]) as process, pytest.raises(SystemExit, match="has ended"):
        process.ask("anybody there?")


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        pytest.raises(SystemExit, match=r"(?s)did not start.*missing"),
        octavo_server(str(missing), [], tmp_path / "log"),
    ):
        pytest.fail("it cannot be ready")


def test_a_server_runs_in_its_directory(tmp_path: Path) -> None:
    """Some write files where they run."""
    code = "import pathlib; pathlib.Path('llama.log').touch(); print('it is written')"
    with (
        pytest.raises(SystemExit, match="it is written"),
        http_server([sys.executable, "-c", code], tmp_path / "log", directory=tmp_path),
    ):
        pytest.fail("it cannot be ready")
    assert (tmp_path / "llama.log").is_file()


@needs_proc
def test_the_peak_of_a_family() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with watch(process.pid) as peak:
            assert process.stdout is not None
            process.stdout.readline()
            peak.update(process.pid)
        process.communicate(b"\n")
    assert 40_000_000 < peak.anonymous < peak.resident


@needs_proc
def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert PeakMemory.now(process.pid) == PeakMemory(0, 0)
