"""One set of tests for Triton's kernels: on the CUDA device where there is one, else in Triton's interpreter.

They import torch, triton and pytest only, so that they run on a machine that has nothing else.
"""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

if importlib.util.find_spec("triton") is None:  # its wheels are for Linux
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def right_bfloat16(device: torch.device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            from tests.gpu import interpreter

            interpreter.install(patch)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
