"""The same tests on a machine without a C compiler: `pytest --without-kernels` hides the compiled kernels."""

import pytest

import model.kernels.cpu.library as kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-kernels", action="store_true", help="run as if the C kernels had not been built")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-kernels"):
        kernels.find = lambda: None
        kernels.library.cache_clear()
