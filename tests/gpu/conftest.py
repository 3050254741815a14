"""Runs the tests of Triton's kernels on the CUDA device, if there is one, else in Triton's interpreter.

The tests import only torch, triton and pytest, so that they run on a machine that has nothing else. Tests of whole
models load checkpoints, and are left out where safetensors is missing.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:  # its wheels are for Linux
    collect_ignore_glob = ["test_*.py"]
elif importlib.util.find_spec("safetensors") is None:
    collect_ignore = ["test_compiled_at_start.py", "test_decoder.py", "test_engine.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Returns the device on which the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def interpreted_as_on_a_gpu(device: torch.device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            from tests.gpu import interpreter, sanitizer

            interpreter.install(patch)
            sanitizer.Sanitizer().install(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def new_memory_is_poisoned() -> Iterator[None]:
    """Fills new tensors, whose memory may otherwise hold the very result that a kernel fails to write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
        yield


@pytest.fixture(autouse=True)
def memory_goes_back(device: torch.device) -> Iterator[None]:
    """Frees the device's memory, which several processes may share."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Returns a function that fills what `allocate` returns with NaN, or with integers that are no valid index."""

    def poison(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if tensor.dtype is torch.bool:
            return tensor.fill_(True)
        return tensor.fill_(math.nan if tensor.dtype.is_floating_point else torch.iinfo(tensor.dtype).max)

    return poison


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
