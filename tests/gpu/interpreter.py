"""Makes Triton's interpreter right in bfloat16, which it holds as 16 bits of an integer and computes with as such.

For triton 3.6 and 3.7. Conversions round to nearest even and products of matrices are taken in float32, as on a GPU.
Arithmetic in bfloat16 raises: kernels convert to float32 right after a load, and keep bfloat16 for tl.dot alone.
"""

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 given as uint16: the upper half of the same bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 of float32, to nearest, ties to even; a NaN stays one."""
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


def install(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone. Only where TRITON_INTERPRET was set when triton was imported."""
    builder, reduction = InterpreterBuilder, interpreter.ReduceScanOpInterface
    patch.setattr(builder, "cast_impl", cast)
    patch.setattr(builder, "create_dot", computing_in_float32(builder.create_dot))
    for name in ("binary_op", "unary_op", "create_fma", "create_clampf"):
        patch.setattr(builder, name, refusing_bfloat16(getattr(builder, name)))
    patch.setattr(reduction, "check_tensor", check_reduced(reduction.check_tensor))
