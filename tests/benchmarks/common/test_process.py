"""Whatever happens to a process that is measured, the benchmark ends with a sentence and leaves nothing running."""

import sys
from pathlib import Path

import pytest

from benchmarks.common.process import json_lines, octavo_server

ECHO = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"


def test_json_lines() -> None:
    with json_lines([sys.executable, "-c", ECHO]) as process:
        assert process.ask({"prompt": "x"}) == {"prompt": "x"}
        assert process.ask([1, 2]) == [1, 2]


def test_policy_is_passive_for_everyone() -> None:
    code = "import json, os; print(json.dumps(os.environ['OMP_WAIT_POLICY']))"
    with json_lines([sys.executable, "-c", code]) as process:
        assert process.read() == "PASSIVE"


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
