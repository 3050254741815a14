"""Corrects bfloat16 in Triton's interpreter, which computes with its 16 bits as if they were integers; also saves time.

This is for triton 3.6 and 3.7. Conversions round to nearest even, and products of matrices are computed in float32, as
on a GPU. Arithmetic in bfloat16 raises: kernels convert to float32 right after a load, and use bfloat16 for tl.dot
only.
"""

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    """Returns float32 for bfloat16 that is given as uint16, the upper half of the same bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to bfloat16, given as uint16, to nearest, ties to even; a NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def values_of(handle: TensorHandle) -> np.ndarray:
    return widen(handle.data) if is_bfloat16(handle) else handle.data


def cast(_: InterpreterBuilder, source: TensorHandle, dtype: tl.dtype) -> TensorHandle:
    values = values_of(source)
    if dtype.scalar == tl.bfloat16:
        return TensorHandle(narrow(values.astype(np.float32)), tl.bfloat16)
    return TensorHandle(values.astype(interpreter._get_np_dtype(dtype)), dtype.scalar)


def computing_in_float32(dot: Any) -> Any:
    def wide_dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        a, b = (TensorHandle(values_of(x), tl.float32) if is_bfloat16(x) else x for x in (a, b))
        return dot(builder, a, b, *rest)

    return wide_dot


def refusing_bfloat16(operation: Any) -> Any:
    def checked(builder: InterpreterBuilder, *operands: Any) -> TensorHandle:
        if any(isinstance(operand, TensorHandle) and is_bfloat16(operand) for operand in operands):
            raise TypeError("a kernel computes in bfloat16; convert to float32 right after the load")
        return operation(builder, *operands)

    return checked


def check_reduced(original: Any) -> Any:
    def check(reduction: Any, tensors: Any) -> None:
        if any(tensor.dtype == tl.bfloat16 for tensor in tensors):
            raise TypeError("a kernel reduces bfloat16; convert to float32 right after the load")
        original(reduction, tensors)

    return check


def sort(x: tl.tensor) -> tl.tensor:
    """Does what tl.sort does. Triton's own network of exchanges takes a second for each 1024 numbers here."""
    return tl.tensor(TensorHandle(np.sort(x.handle.data), x.dtype), x.type)


class PatchingOnce:
    """Replaces Triton's functions once for each launch. The interpreter does it in each call of a function by a kernel.

    That takes a quarter of all time, and changes nothing: the functions of one module have the same language in sight.
    """

    def __init__(self) -> None:
        self.modules: set[int] = set()  # ids of the global names of modules for which it has been done in this launch

    def launching(self, launch: Any) -> Any:
        def call(executor: GridExecutor, *args: Any, **kwargs: Any) -> Any:
            self.modules.clear()
            return launch(executor, *args, **kwargs)

        return call

    def replacing(self, replace: Any) -> Any:
        def once(function: Any) -> Any:
            if id(function.__globals__) in self.modules:
                return None  # The caller inside a launch does not use what is returned.
            self.modules.add(id(function.__globals__))
            return replace(function)

        return once


def install(patch: pytest.MonkeyPatch) -> None:
    """Corrects the interpreter until `patch` is undone. TRITON_INTERPRET must be set before triton is imported."""
    builder, reduction = InterpreterBuilder, interpreter.ReduceScanOpInterface
    patch.setattr(builder, "cast_impl", cast)
    patch.setattr(builder, "create_dot", computing_in_float32(builder.create_dot))
    for name in ("binary_op", "unary_op", "create_fma", "create_clampf"):
        patch.setattr(builder, name, refusing_bfloat16(getattr(builder, name)))
    patch.setattr(tl, "sort", sort)
    patch.setattr(reduction, "check_tensor", check_reduced(reduction.check_tensor))
    once = PatchingOnce()
    patch.setattr(GridExecutor, "__call__", once.launching(GridExecutor.__call__))
    patch.setattr(interpreter, "_patch_lang", once.replacing(interpreter._patch_lang))
