"""Many streams at once lose nothing: each gets all its own tokens, in order, and its end.

`python -m tests.e2e.test_load` does this for a minute.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.harness import Server, fake_server
from tests.e2e.streams import Crowd

STREAMS = 64
TOKENS = 200
BEHAVIOUR = {"step_seconds": 0.002, "max_num_seqs": 16, "max_waiting": 1000}


def text_of(index: int) -> str:
    """Returns the answer of a client: the engine counts on below 100, and the tokens from 3 on are bytes."""
    tokens = [(index + 1 + count) % 100 for count in range(TOKENS)]
    return "".join(chr(token - 3) for token in tokens if token >= 3)


def serve_crowds(server: Server, seconds: float) -> int:
    """Serves crowd after crowd for so long; returns how many requests were answered."""
    server.wait_for_health(200)
    served, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        crowd = Crowd(server.url)
        crowd.add(STREAMS, TOKENS)
        endings = crowd.endings()
        assert [ending.error for ending in endings] == [None] * STREAMS
        assert [ending.text for ending in endings] == [text_of(index) for index in range(STREAMS)]
        assert all(ending.complete and ending.finish_reason == "length" for ending in endings)
        served += STREAMS
    assert server.metric("num_requests_running") == 0
    assert server.metric("num_requests_waiting") == 0
    assert len(server.engine_pids()) == 1, "the engine did not die meanwhile"
    return served


def test_sixty_four_streams_lose_nothing(serve_fake: Callable[..., Server]) -> None:
    assert serve_crowds(serve_fake(**BEHAVIOUR), seconds=3) >= STREAMS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, fake_server(Path(directory), **BEHAVIOUR) as server:
        print(serve_crowds(server, seconds=60), "requests answered in full")
