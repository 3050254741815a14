"""Gives the tests of the start a checkpoint."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the directory of a tiny checkpoint, which no test changes."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
