"""Provides a real Chromium and a server whose model says what it is told; both end with the tests."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.harness import FOREVER, MODEL, Server, started, write_tokenizer
from tests.needs import chromium
from tests.tiny import write_tiny_checkpoint

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS = [*QUIET.split(), "--disable-component-update", "--disable-sync"]

PATIENCE = 120_000  # milliseconds; the machine may be busy

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Opens a browser for one module only: its event loop runs in this thread, where asyncio.run would then fail."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Opens a window with storage of its own. The test fails if the page throws."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        thrown: list[str] = []
        page.on("pageerror", lambda error: thrown.append(str(error)))
        yield page
        assert thrown == []


@pytest.fixture
def serve_echo(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Yields a function that starts a server; it takes flags as arguments and the engine's behaviour as keywords."""
    with ExitStack() as stack:
        yield lambda *flags, **behaviour: stack.enter_context(started(*_command(tmp_path, flags, behaviour)))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts one server for all tests that leave it unchanged."""
    with started(*_command(tmp_path_factory.mktemp("page"), (), {"step_seconds": 0.001})) as server:
        server.wait_for_health(200)
        yield server


def _command(directory: Path, flags: tuple[str, ...], behaviour: dict[str, Any]) -> tuple[list[str | Path], Path]:
    model = write_tiny_checkpoint(directory / MODEL, vocab_size=264)
    write_tokenizer(model)
    (model / "model.safetensors").unlink()
    chosen = json.dumps({"lives": str(directory / "lives"), "max_model_len": 2 * FOREVER} | behaviour)
    return ["tests/page/echo.py", chosen, "serve", model, *flags], directory
