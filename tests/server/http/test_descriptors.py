"""The process takes as many descriptors as it may have, and leaves some for itself."""

import resource
import subprocess
import sys

import pytest

from octavo.server.http.descriptors import RESERVED, WANTED, accepted_at_once, room_for_connections

CODE = """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, min(int(sys.argv[1]), hard) if hard >= 0 else int(sys.argv[1])))
from octavo.server.http.descriptors import raise_limit, room_for_connections
print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], room_for_connections())
"""


def raised(hard: int) -> list[int]:
    command = [sys.executable, "-c", CODE, str(hard)]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()]


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    assert raised(512) == [512, 512, 512 - RESERVED]
    assert raised(100) == [100, 100, 50]


def test_there_is_room_for_connections_here() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 1 <= room_for_connections() <= (WANTED if soft < 0 else soft)


@pytest.mark.parametrize("soft", [8, 64, 512, 65_536])
def test_those_who_come_at_once_find_descriptors_until_idle_ones_have_made_room(
    monkeypatch: pytest.MonkeyPatch, soft: int
) -> None:
    """asyncio accepts three times before what the first ones replaced is closed."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert accepted_at_once() >= 1 and room_for_connections() + 3 * accepted_at_once() <= soft
