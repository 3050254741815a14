"""Finds in Triton's interpreter what a GPU would punish; the interpreter itself runs programs in order, in one thread.

In every launch each address that a program reads or writes must

    lie in a tensor that the kernel was given, within that view of its memory
    be used by no other program if any program writes it, since programs run beside each other, in any order
    not have been written by the program itself before it is read, since another of its threads may have done so
    not be written twice at once with different values

What a mask leaves out of a load that names no other value becomes NaN or a large number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

NOBODY, SEVERAL = -1, -2  # programs


class Unforgivable(Exception):
    """Unforgivable is raised for an access that may do anything on a GPU."""


@dataclass
class Memory:
    """A Memory records what the programs of a launch have done so far, address by address."""

    starts: np.ndarray  # beginnings of the tensors' spans, ascending and disjoint
    ends: np.ndarray
    offsets: np.ndarray  # beginning of each span in the arrays below
    writers: np.ndarray  # for each byte a program, or NOBODY
    readers: np.ndarray  # or SEVERAL

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Memory":
        """Returns a fresh record of these tensors."""
        spans: list[list[int]] = []
        for start, end in sorted(map(span, tensors)):
            if spans and start < spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([start, end])
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        offsets = np.cumsum(ends - starts) - (ends - starts)
        nobody = np.full((ends - starts).sum(), NOBODY, dtype=np.int32)
        return cls(starts, ends, offsets, nobody, nobody.copy())

    def read(self, program: int, addresses: np.ndarray, size: int) -> None:
        """Raises Unforgivable."""
        at = self._at(addresses, size)
        if (self.writers[at] != NOBODY).any():
            raise Unforgivable("a program reads what one of this launch writes")
        others = self.readers[at]
        self.readers[at] = np.where((others == NOBODY) | (others == program), program, SEVERAL)

    def write(self, program: int, addresses: np.ndarray, values: np.ndarray) -> None:
        """Raises Unforgivable."""
        at = self._at(addresses, values.itemsize)
        for others in (self.writers[at], self.readers[at]):
            if ((others != NOBODY) & (others != program)).any():
                raise Unforgivable("a program writes where another one of this launch reads or writes")
        self.writers[at] = program
        order = np.argsort(addresses, kind="stable")
        same = np.diff(addresses[order]) == 0
        bits = values.view(f"u{values.itemsize}")[order]
        if (same & (bits[1:] != bits[:-1])).any():
            raise Unforgivable("one store has two values for the same address")

    def _at(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Returns the places of the addresses in the arrays."""
        found = np.searchsorted(self.starts, addresses, side="right") - 1
        if (found < 0).any() or (addresses + size > self.ends[found]).any():
            raise Unforgivable("a program reads or writes outside of the kernel's tensors")
        return self.offsets[found] + addresses - self.starts[found]


def span(tensor: Tensor) -> tuple[int, int]:
    """Returns the range of addresses that a view can reach."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


@dataclass
class Sanitizer:
    """A Sanitizer stands between the interpreter and the memory."""

    memory: Memory = field(default_factory=lambda: Memory.of(()))
    programs: int = 0  # programs of the launch that have begun

    def begin(self, arguments: Sequence[object]) -> None:
        self.memory = Memory.of([each for each in arguments if isinstance(each, Tensor)])
        self.programs = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watches the interpreter until `patch` is undone."""
        builder = InterpreterBuilder
        patch.setattr(GridExecutor, "_init_args_hst", self._launching(GridExecutor._init_args_hst))
        patch.setattr(builder, "set_grid_idx", self._counting(builder.set_grid_idx))
        patch.setattr(builder, "create_masked_load", self._reading(builder.create_masked_load))
        patch.setattr(builder, "create_masked_store", self._writing(builder.create_masked_store))

    def _launching(self, original: Any) -> Any:
        def init(executor: GridExecutor, args: Any, kwargs: Any) -> Any:
            on_host = original(executor, args, kwargs)
            self.begin([*on_host[0], *on_host[1].values()])
            return on_host

        return init

    def _counting(self, original: Any) -> Any:
        def set_grid_idx(builder: InterpreterBuilder, *index: int) -> None:
            self.programs += 1
            original(builder, *index)

        return set_grid_idx

    def _reading(self, original: Any) -> Any:
        def load(builder: InterpreterBuilder, ptrs: TensorHandle, mask: TensorHandle, other: Any, *rest: Any) -> Any:
            held = original(builder, ptrs, mask, other, *rest)
            there = np.broadcast_to(mask.data.astype(bool), ptrs.data.shape)
            self.memory.read(self.programs, ptrs.data[there].astype(np.int64), held.data.itemsize)
            if other is None:
                held.data[~there] = poison_of(held)
            return held

        return load

    def _writing(self, original: Any) -> Any:
        def store(
            builder: InterpreterBuilder, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
        ) -> Any:
            there = np.broadcast_to(mask.data.astype(bool), ptrs.data.shape)
            values = np.broadcast_to(value.data, ptrs.data.shape)[there]
            self.memory.write(self.programs, ptrs.data[there].astype(np.int64), values)
            return original(builder, ptrs, value, mask, *rest)

        return store


def poison_of(handle: TensorHandle) -> Any:
    """Returns what a load gives where its mask is false and no other value is named: a value that tests notice."""
    if handle.dtype.scalar == tl.bfloat16:
        return 0x7FC0
    if handle.data.dtype.kind == "f":
        return np.nan
    return 0x77 if handle.data.dtype.itemsize == 1 else np.iinfo(handle.data.dtype).max // 3
