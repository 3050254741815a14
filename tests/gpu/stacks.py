"""Makes random experts of every kind, and tokens that choose among them."""

import pytest
import torch
from torch import Tensor

from octavo.model.weights.memory import zeros_on
from octavo.model.weights.row_major import (
    PLAIN,
    Fp8RowMajor,
    Int4RowMajor,
    Int8GroupedRowMajor,
    Int8RowMajor,
    RowMajorWeight,
    Stack,
)

KINDS = [torch.bfloat16, torch.float16, torch.float32, Int8RowMajor, Int8GroupedRowMajor, Int4RowMajor, Fp8RowMajor]
Kind = torch.dtype | type[RowMajorWeight]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind).split(".")[-1].rstrip("'>"))


def make(kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device) -> tuple[Stack, Tensor]:
    """Returns random weights [E, out, in] as a stack, and their values as they are held, [E, out, in] float32."""
    if kind is Fp8RowMajor and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no fp8")
    torch.manual_seed(sum(shape))
    dense = torch.randn(shape, device=device).div_(shape[2] ** 0.5)
    if isinstance(kind, torch.dtype):
        dense = dense.to(dtype)
        return Stack.of(dense.unbind()), dense.float()
    views = kind.stack(shape[0], shape[1:], zeros_on(device))
    for view, rows in zip(views, dense, strict=True):
        view.fill(rows, 0)
        rows.copy_(view.dense())  # It is done in place: at true shapes this is 4 GB, and several tests share a device.
    return Stack.of(views), dense


def activations(kind: Kind) -> torch.dtype:
    return kind if isinstance(kind, torch.dtype) else torch.bfloat16


def name_of(kind: Kind) -> str:
    """Returns the kind's name in a Stack."""
    return PLAIN[kind] if isinstance(kind, torch.dtype) else kind.kind


def ragged(tokens: int, top_k: int, num_experts: int, device: torch.device) -> Tensor:
    """Chooses different experts for each token; the last expert gets none, the first one most."""
    torch.manual_seed(tokens)
    weights = torch.rand(tokens, num_experts)
    weights[:, 0] += 0.7
    if num_experts > top_k:
        weights[:, -1] = 0
    return weights.topk(top_k).indices.to(device, torch.int32)
