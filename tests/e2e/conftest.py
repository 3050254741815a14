"""Gives the tests with real sockets and processes a server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness import Server, fake_server


@pytest.fixture
def serve_fake(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server with a fake engine: flags as arguments, the engine's behaviour as keywords."""
    with ExitStack() as stack:
        yield lambda *flags, **behaviour: stack.enter_context(fake_server(tmp_path, *flags, **behaviour))
