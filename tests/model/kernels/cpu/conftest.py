"""Gives tests the C kernels on each instruction set that the machine has."""

from collections.abc import Iterator

import pytest
import torch

from octavo.model.kernels.cpu.library import Library, library

KERNELS = library()
LEVELS = [] if KERNELS is None else [level for level in KERNELS.levels() if KERNELS.set_level(level)]


@pytest.fixture(params=LEVELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Library]:
    assert KERNELS is not None
    before = KERNELS.level
    assert KERNELS.set_level(request.param)
    torch.set_num_threads(2)  # the suite may leave this process one
    KERNELS.follow_torch()
    yield KERNELS
    KERNELS.set_level(before)
