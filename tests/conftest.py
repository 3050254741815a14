"""What holds for all tests: `--without-kernels` hides the C kernels; Triton's are interpreted where there is no GPU."""

import os
from importlib.util import find_spec

import pytest
import torch

import octavo.model.kernels.cpu.library as kernels

TIMEOUTS = find_spec("pytest_timeout") is not None  # tests/gpu/ runs with torch, triton and pytest alone

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is first imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-kernels", action="store_true", help="run as if the C kernels had not been built")
    if not TIMEOUTS:
        parser.addini("timeout", "what pytest-timeout would read")


def pytest_configure(config: pytest.Config) -> None:
    if not TIMEOUTS:
        config.addinivalue_line("markers", "timeout: what pytest-timeout would heed")
    if config.getoption("--without-kernels"):
        kernels.find = lambda: None
        kernels.library.cache_clear()
