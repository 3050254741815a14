"""Prepares all tests: hides the C kernels on demand, has Triton interpreted without a GPU, shares the cores.

tests/gpu/ runs with torch, triton, numpy and pytest alone, so nothing here needs a plugin of pytest.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import octavo.model.kernels.cpu.library as kernels
from octavo.engine.startup import machine

TESTS = Path(__file__).parent
TIMEOUTS = find_spec("pytest_timeout") is not None
MOST_WORKERS = 8  # each may load the default model
# With several workers the tests that take longest go first, so that no worker has much left to do when the others end.
LONGEST_FIRST = ("model/demo", "gpu", "test_wheel.py", "benchmarks", "model", "e2e", "page", "fuzz", "engine", "server")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is first imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-kernels", action="store_true", help="run as if the C kernels had not been built")
    if not TIMEOUTS:
        parser.addini("timeout", "what pytest-timeout would read")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.addinivalue_line("filterwarnings", "error")
    if not TIMEOUTS:
        config.addinivalue_line("markers", "timeout: what pytest-timeout would heed")
    if config.getoption("--without-kernels"):
        kernels.find = lambda: None
        kernels.library.cache_clear()
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Returns the number of processors that this process may use, up to a bound."""
    return min(MOST_WORKERS, machine.processors())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=rank)


def rank(item: pytest.Item) -> int:
    """Returns the place of the item's folder in LONGEST_FIRST."""
    path = item.path.relative_to(TESTS)
    return next((at for at, name in enumerate(LONGEST_FIRST) if path.is_relative_to(name)), len(LONGEST_FIRST))


@pytest.fixture(autouse=True)
def threads_are_given_back() -> Iterator[None]:
    """Leaves torch with as many threads as it had, whatever number a test asks for."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
