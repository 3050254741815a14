"""Large bodies take turns, so that their memory has a bound; small ones never wait."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request as HttpRequest

from octavo.server.generation import intake as module
from octavo.server.generation.intake import SMALL, Intake, discard
from octavo.server.http.errors import RequestTimeout, TooManyRequests
from octavo.server.http.streaming import ClientLeft

LARGE = 2 * SMALL


class Sender:
    """Sends a body in parts, and notes how many were taken."""

    def __init__(self, size: int, leaves: bool = False, **headers: str) -> None:
        self.parts = [b"x" * SMALL] * (size // SMALL) + [b"x" * (size % SMALL)]
        self.taken = 0
        self.leaves = leaves
        self.goes_on: asyncio.Event | None = None  # the last part waits for it
        given = {"content-length": str(size)} | {key.replace("_", "-"): value for key, value in headers.items()}
        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(key.encode(), value.encode()) for key, value in given.items() if value],
        }
        self.http = HttpRequest(scope, self.receive)

    async def receive(self) -> dict[str, object]:
        if self.leaves and self.taken == len(self.parts) - 1:
            return {"type": "http.disconnect"}
        if self.goes_on is not None and self.taken == len(self.parts) - 1:
            await self.goes_on.wait()
        self.taken += 1
        return {"type": "http.request", "body": self.parts[self.taken - 1], "more_body": self.taken < len(self.parts)}


async def take(intake: Intake, sender: Sender, finished: asyncio.Event) -> int:
    async with intake.received(sender.http) as body:
        await finished.wait()
        return len(body)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_large_bodies_wait_unread_and_small_ones_pass() -> None:
    async def run() -> None:
        intake, finished = Intake(LARGE, held=2 * LARGE), asyncio.Event()
        senders = [Sender(LARGE), Sender(LARGE, content_length=""), Sender(LARGE), Sender(LARGE)]
        tasks = [asyncio.create_task(take(intake, sender, finished)) for sender in senders]
        await settle()
        assert [sender.taken > 0 for sender in senders] == [True, True, False, False]
        async with intake.received(Sender(SMALL).http) as body:
            assert len(body) == SMALL
        finished.set()
        assert await asyncio.gather(*tasks) == [LARGE] * 4

    asyncio.run(run())


def test_they_come_in_the_order_in_which_they_asked() -> None:
    async def run() -> None:
        intake, finished = Intake(4 * LARGE, held=4 * LARGE), asyncio.Event()
        senders = [Sender(2 * LARGE), Sender(4 * LARGE), Sender(LARGE)]
        tasks = [asyncio.create_task(take(intake, sender, finished)) for sender in senders]
        await settle()
        assert [sender.taken > 0 for sender in senders] == [True, False, False]  # The last one fits, and waits.
        tasks[1].cancel()
        await settle()
        assert senders[2].taken > 0
        finished.set()
        await asyncio.gather(tasks[0], tasks[2])

    asyncio.run(run())


def test_whoever_leaves_gives_the_room_back() -> None:
    async def run() -> None:
        intake = Intake(LARGE, held=LARGE)
        for leaves in (True, True, False):
            sender = Sender(LARGE, leaves)
            if not leaves:
                async with intake.received(sender.http) as body:
                    assert len(body) == LARGE
                return
            with pytest.raises(ClientLeft):
                async with intake.received(sender.http):
                    raise AssertionError

    asyncio.run(run())


def test_what_is_packed_counts_as_what_it_may_become() -> None:
    async def run() -> None:
        intake = Intake(LARGE, held=LARGE)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(intake.received(Sender(1000, content_encoding="gzip").http))
            async with intake.received(Sender(100, content_encoding="gzip").http) as body:
                assert len(body) == 100
            waiting = Sender(LARGE)
            task = asyncio.create_task(take(intake, waiting, asyncio.Event()))
            await settle()
            assert waiting.taken == 0
            task.cancel()

    asyncio.run(run())


def test_there_is_an_end_to_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(expected: str) -> None:
        intake, finished = Intake(LARGE, held=LARGE), asyncio.Event()
        first = asyncio.create_task(take(intake, Sender(LARGE), finished))
        await settle()
        with pytest.raises(TooManyRequests, match=expected):
            await take(intake, Sender(LARGE), finished)
        finished.set()
        assert await first == LARGE
        assert await take(intake, Sender(LARGE), finished) == LARGE

    monkeypatch.setattr(module, "PATIENCE", 0.0)
    asyncio.run(run("for too long"))
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    asyncio.run(run("Too many large bodies"))


def test_whoever_sends_slowly_ends_when_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HURRY", 0.0)

    async def run() -> None:
        intake, finished = Intake(LARGE, held=LARGE), asyncio.Event()
        finished.set()
        slow = Sender(LARGE)
        slow.goes_on = asyncio.Event()
        stuck = asyncio.create_task(take(intake, slow, finished))
        await asyncio.sleep(0.01)
        assert not stuck.done()  # Nobody waits, and so it has time.
        assert await take(intake, Sender(LARGE), finished) == LARGE
        with pytest.raises(RequestTimeout):
            await stuck

    asyncio.run(run())


@pytest.mark.parametrize(("headers", "taken"), [({}, 3), ({"expect": "100-continue"}, 0)])
def test_an_unwanted_body_is_received_unless_the_client_asks_first(headers: dict[str, str], taken: int) -> None:
    sender = Sender(LARGE, **headers)
    asyncio.run(discard(sender.http))
    assert sender.taken == taken
