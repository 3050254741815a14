"""Keeps SIGINT and SIGTERM, which reach the whole process group, from children: their parent decides when they end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Blocks both signals in a child that is started within: until it has handlers, it would die of them.

    The child calls `ignore_stop_signals` as soon as it runs our code.
    """
    resource_tracker.ensure_running()  # multiprocessing would start the tracker, which unblocks both signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_stop_signals() -> None:
    """Ignores both signals in the child that calls this, and unblocks them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
