"""Counts the file descriptors that this process may have: each connection takes one."""

import resource

WANTED = 65_536  # descriptors; many systems begin with 1,024 and let a process raise that
MOST_CONNECTIONS = 8192  # unless --limit-concurrency asks for more: each takes memory, and time to watch over
BACKLOG = 2048  # connections that may wait to be accepted
RESERVED = 128  # of them are for the engine's pipes, files and connections that are being refused


def raise_limit() -> int:
    """Raises the soft limit as far as the hard one and WANTED allow; returns it. Engines started later inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else WANTED
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a lower limit than it tells.
        return soft
    return wanted


def room_for_connections() -> int:
    """Returns how many connections there may be at once, by the descriptors that there are."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if soft == resource.RLIM_INFINITY else soft
    return min(max(most - RESERVED, most // 2, 1), MOST_CONNECTIONS)


def accepted_at_once() -> int:
    """Returns how many connections to accept before idle ones can have made room: few of the descriptors in reserve.

    Without descriptors asyncio accepts nobody for a second, and logs a traceback for each that it had tried to accept.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = RESERVED if soft == resource.RLIM_INFINITY else min(RESERVED, soft // 2)
    return max(reserve // 12, 1)
