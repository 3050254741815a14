"""Checks that the interpreter refuses what a GPU would punish, and that new memory holds no number."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def read_beyond(source, target):
    at = tl.arange(0, 16)
    tl.store(target + at, tl.load(source + at + 1))


@triton.jit
def write_before(source, target):
    at = tl.arange(0, 16)
    tl.store(target + at - 1, tl.load(source + at))


@triton.jit
def write_together(source, target):
    tl.store(target + tl.arange(0, 16), tl.load(source) + tl.program_id(0))


@triton.jit
def read_what_another_writes(source, target):
    at = tl.program_id(0) * 8 + tl.arange(0, 8)
    tl.store(target + at, tl.load(source + at))
    tl.store(target + 16 + at, tl.load(target + 15 - at))


@triton.jit
def read_back(source, target):
    at = tl.arange(0, 16)
    tl.store(target + at, tl.load(source + at))
    tl.store(target + 16 + at, tl.load(target + 15 - at))


@triton.jit
def two_values(source, target):
    at = tl.arange(0, 16)
    tl.store(target + at // 2, tl.load(source + at))


@triton.jit
def masked_without_other(source, target):
    at = tl.arange(0, 16)
    tl.store(target + at, tl.load(source + at, mask=at < 8))


@triton.jit
def in_pieces(source, target):
    at = tl.program_id(0) * 8 + tl.arange(0, 8)
    tl.store(target + at, tl.load(source + at))
    tl.store(target + 31 + 0 * at, tl.load(source), mask=tl.program_id(0) == 1)


@pytest.fixture(autouse=True)
def interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter's own")


def launched(kernel: Any, programs: int) -> torch.Tensor:
    """Returns what the kernel writes for 0 to 15."""
    memory, target = torch.arange(48.0), torch.empty(32)
    kernel[(programs,)](memory[16:32], target)
    return target


@pytest.mark.parametrize(
    ("kernel", "programs", "complaint"),
    [
        (read_beyond, 1, "outside of the kernel's tensors"),
        (write_before, 1, "outside of the kernel's tensors"),
        (write_together, 2, "writes where another"),
        (read_what_another_writes, 2, "reads what one of this launch writes|writes where another"),
        (read_back, 1, "reads what one of this launch writes"),
        (two_values, 1, "two values for the same address"),
    ],
    ids=["read beyond", "write before", "write together", "read another's", "read back", "two values"],
)
def test_it_is_refused(kernel: Any, programs: int, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        launched(kernel, programs)


def test_programs_that_keep_to_themselves_pass() -> None:
    """Uses the whole of a view; many threads may write one value to one address."""
    target = launched(in_pieces, 2)
    assert target[:16].tolist() == list(range(16, 32)) and target[31] == 16
    assert target[16:31].isnan().all()


def test_what_a_mask_leaves_out_is_no_number() -> None:
    target = launched(masked_without_other, 1)
    assert target[:8].isfinite().all() and target[8:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int64], ids=str)
def test_new_memory_is_poisoned(dtype: torch.dtype) -> None:
    one = torch.empty(3, dtype=dtype)
    for each in (one, torch.empty_like(one), torch.ones(1).new_empty(3, dtype=dtype)):
        assert each.dtype == dtype
        assert (each.isnan() if dtype.is_floating_point else each == torch.iinfo(dtype).max).all()
