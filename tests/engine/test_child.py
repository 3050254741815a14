"""A Child answers, or it is said why not, and it never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.child import Child, Died, NotStarted, TooSlow
from tests.e2e.harness import until


def answers(greeting: str) -> Callable[[str], Any]:
    """Runs in the process."""
    if greeting == "never":
        raise LookupError("it cannot start")

    def answer(question: str) -> Any:
        match question:
            case "sleep":
                time.sleep(600)
            case "fill":
                raise MemoryError
            case "fail":
                raise ValueError("a mistake")
        return greeting, question, os.getpid()

    return answer


def test_questions_are_answered_one_after_the_other() -> None:
    child = Child(answers, "hi")
    assert [child.ask(question, 60) for question in "ab"] == [("hi", "a", child.pid), ("hi", "b", child.pid)]
    assert child.is_alive()


@pytest.mark.parametrize(("question", "failure"), [("sleep", TooSlow), ("fill", Died), ("fail", Died)])
def test_why_no_answer_came(question: str, failure: type[Exception]) -> None:
    child = Child(answers, "hi")
    child.ask("a", 60)
    with pytest.raises(failure):
        child.ask(question, 0.5 if failure is TooSlow else 60)
    child.kill()
    assert not child.is_alive()
    with pytest.raises(Died):
        child.ask("a", 60)


def test_a_child_that_cannot_start_says_so() -> None:
    with pytest.raises(NotStarted):
        Child(answers, "never").ask("a", 60)


def test_ctrl_c_does_not_reach_it() -> None:
    child = Child(answers, "hi")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, number)  # also before it runs our code
    assert child.ask("a", 60)[:2] == ("hi", "a")


def test_it_ends_with_whoever_holds_it() -> None:
    child = Child(answers, "hi")
    pid = child.ask("a", 60)[2]
    del child
    assert not Path(f"/proc/{pid}").exists()


def test_it_ends_with_a_parent_that_is_killed() -> None:
    code = (
        "import os, signal; from tests.engine.test_child import *; child = Child(answers, 'hi');"
        "print(child.ask('a', 60)[2], flush=True); child._connection.send('sleep');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert parent.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(parent.stdout)}/stat")
    until(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")
