"""Keeps SIGINT and SIGTERM, which reach the whole process group, from children: their parent decides when they end."""

import signal
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


def start_with_stop_signals_blocked(child: BaseProcess) -> None:
    """Starts the process with both signals blocked: while it imports it has no handlers, and would die of them.

    The child calls `ignore_stop_signals` as soon as it runs our code.
    """
    resource_tracker.ensure_running()  # child.start() would start the tracker, which unblocks both signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_stop_signals() -> None:
    """Ignores both signals in the child that calls this, and unblocks them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
