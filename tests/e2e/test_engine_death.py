"""When the engine process is killed, clients that wait are told at once, and the server serves again or exits."""

import os
import signal
from collections.abc import Callable

from tests.e2e.harness import FOREVER, Server
from tests.e2e.streams import Crowd, complete
from tests.fake_engine import RESTART


def test_every_open_request_gets_an_error_and_the_server_recovers(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake(step_seconds=0.005, max_num_seqs=8, max_waiting=100, held=[RESTART])
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(8, FOREVER)
    crowd.add(4, FOREVER, streaming=False)
    server.wait_for_load(running=8, waiting=4)
    os.kill(server.engine_pids()[-1], signal.SIGKILL)
    for ending in crowd.endings():
        assert ending.error is not None
        assert "engine process died" in ending.error["message"]
        assert ending.finish_reason is None
    assert server.health() == 503, "nobody has waited for the next engine"
    server.release(RESTART)
    server.wait_for_health(200)
    assert len(server.engine_pids()) == 2
    assert complete(server.url, [3, 4], 5).finish_reason == "length"
    assert "killed by SIGKILL" in server.output
    assert "serves again" in server.output


def test_after_five_failed_restarts_the_server_exits(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake(stillborn=[1, 2, 3, 4, 5])
    server.wait_for_health(200)
    os.kill(server.engine_pids()[-1], signal.SIGKILL)
    assert server.exit_status() == 1
    assert len(server.engine_pids()) == 6
    assert "5 restarts in a row have failed" in server.output
    server.wait_until_nothing_is_left()


def test_a_killed_server_leaves_no_engine(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    server.process.kill()
    server.exit_status()
    server.wait_until_nothing_is_left()
