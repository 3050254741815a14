"""Tells how an engine process died, and what the clients that waited for it are told."""

import signal
from dataclasses import dataclass
from pathlib import Path

# An open request ends with this sentence when the process dies that worked on it.
OPEN_REQUEST_DIED = "The engine process died while it worked on this request; try again in a moment."


@dataclass(frozen=True, slots=True)
class Died:
    """Says that a process is dead, and that no message of it will follow."""

    reason: str  # a clause, to be put into a sentence


def how_it_ended(exit_code: int | None) -> str:
    """Returns a clause for an exit code of multiprocessing: -N for signal N, None while the process still ends."""
    if exit_code is None:
        return "the engine process is gone"
    if exit_code >= 0:
        return f"the engine process ended with status {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = ", as happens when memory runs out" if -exit_code == signal.SIGKILL else ""
    return f"the engine process was killed by {name}{hint}"


def past_mending(exit_code: int | None) -> str | None:
    """Returns a sentence for an end that would only come again; None where another start may go well.

    SIGBUS comes when a page of a mapped file cannot be read: the file was cut off, or its disk failed.
    """
    if exit_code != -signal.SIGBUS:
        return None
    return (
        "A file with the model's weights became unreadable while it was mapped (SIGBUS): it was cut off, or its disk "
        "failed. Put it back or run `octavo prepare` again, then start the server again."
    )


def has_lost_its_memory(pid: int | None) -> bool:
    """Returns whether the kernel takes a process's memory back, and so whether the process is past saving.

    For a large model that takes seconds, and the kernel closes the files of the process only then. Where there is no
    /proc the answer is always False.
    """
    try:
        return Path(f"/proc/{pid}/statm").read_text(encoding="ascii").startswith("0 ")
    except OSError:
        return False
