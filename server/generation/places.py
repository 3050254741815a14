"""Places says, before a body is read, whether the engine could take one more request."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from octavo.engine.client import EngineClient, Refused
from octavo.server.generation.refusals import as_api_error


class Places:
    """Counts the requests that are being read: each of them will want a place.

    Reading a prompt is most of what a refused request costs, so a full queue is told before it. Without the count, all
    who came while one place was free would be read, and all but one of them for nothing.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._taken = 0

    def take(self) -> AbstractContextManager[None]:
        """Returns what keeps a place until its block ends. Raises TooManyRequests or ServiceUnavailable."""
        try:
            self._client.check_room(self._taken + 1)
        except Refused as refused:
            raise as_api_error(refused) from refused
        return self._kept()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
