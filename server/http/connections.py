"""Counts connections. When there are too many, the one that has been idle longest makes room."""

import logging
import time
from typing import Protocol

logger = logging.getLogger(__name__)

LOG_PAUSE = 60.0  # seconds between two lines that say the same


class Member(Protocol):
    """Is one client's connection."""

    def check(self, now: float) -> None:
        """Ends the connection if its client has been silent or slow for too long; `now` is the loop's time."""

    def give_way(self) -> None:
        """Ends the connection, which is idle."""


class Connections:
    """Holds all connections of a server. Those without a request that runs are idle."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: set[Member] = set()
        self._idle: dict[Member, None] = {}  # the one that has been idle longest comes first
        self._logged = -LOG_PAUSE

    def enter(self, member: Member) -> bool:
        """Takes in a connection, for which an idle one makes room if need be. Returns False if there is none."""
        self._all.add(member)
        if len(self._all) > self._most:
            self._log()
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self._idle.pop(oldest)
            oldest.give_way()
        self._idle[member] = None
        return True

    def leave(self, member: Member) -> None:
        self._all.discard(member)
        self._idle.pop(member, None)

    def note(self, member: Member, idle: bool) -> None:
        """Notes whether a connection is idle now."""
        if not idle:
            self._idle.pop(member, None)
        elif member in self._all:
            self._idle.setdefault(member)

    def check(self, now: float) -> None:
        """Ends connections whose clients have been silent or slow for too long."""
        for member in tuple(self._all):
            member.check(now)

    def _log(self) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_PAUSE:
            self._logged = now
            logger.warning(
                "all %d connections are taken: idle ones are closed, or new ones told 503; --limit-concurrency and "
                "`ulimit -n` set the number",
                self._most,
            )
