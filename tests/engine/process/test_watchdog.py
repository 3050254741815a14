"""A script says, second by second, what the watchdog meets, and so when an engine counts as hung."""

import asyncio
from collections.abc import Iterator

import pytest

from octavo.engine.process.watchdog import Watchdog

LONG = 1000  # seconds


def barks_after(monkeypatch: pytest.MonkeyPatch, timeout: int, script: str) -> int | None:
    """Returns after how many seconds an engine counts as hung; None: not within the script.

    In the script, "." is silence while somebody waits, "!" a sign of life, and "0" silence while nobody waits.
    """
    seconds: Iterator[str] = iter(script)
    met: list[str] = []

    async def run() -> int | None:
        enough = asyncio.Event()

        async def second(_: float) -> None:
            if (now := next(seconds, None)) is None:
                enough.set()
                await asyncio.Event().wait()
            met.append(str(now))
            if now == "!":
                watchdog.hear()

        monkeypatch.setattr("octavo.engine.process.watchdog.sleep", second)
        watchdog = Watchdog(timeout, lambda: met[-1] != "0")
        hung, end = asyncio.create_task(watchdog.hung()), asyncio.create_task(enough.wait())
        await asyncio.wait([hung, end], return_when=asyncio.FIRST_COMPLETED)
        return len(met) if hung.done() else None

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("timeout", "script", "after"),
    [
        (3, "." * LONG, 4),
        (3, "0" * LONG, None),
        (3, "..!" * LONG, None),
        (3, "...0" * LONG, None),
        (3, "..0..!" + "." * LONG, 9),
        (0, "." * LONG, None),
    ],
    ids=["silent", "idle", "slow", "slow, then idle", "silent at last", "off"],
)
def test_silence_that_somebody_waits_in(
    monkeypatch: pytest.MonkeyPatch, timeout: int, script: str, after: int | None
) -> None:
    assert barks_after(monkeypatch, timeout, script) == after
