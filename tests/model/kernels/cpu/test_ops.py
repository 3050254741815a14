"""Checks the seam `attention` over the C kernels, and what it leaves to torch."""

import pytest
import torch
from torch import Tensor

from octavo.model.kernels.cpu.library import library
from octavo.model.kernels.cpu.ops import CpuOps
from octavo.model.ops.attention import AttentionPlan, attention_reference
from octavo.model.ops.seams import TORCH
from tests.model.caches import HEAD_DIM, copy_of, random_cache
from tests.model.pages import flat_batch

KERNELS = library()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="the C kernels were not built")


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sinks", [None, torch.tensor([-1.0, 0.5, 2.0, 4.0])])
def test_attention(dtype: torch.dtype, window: int | None, sinks: Tensor | None) -> None:
    assert KERNELS is not None
    torch.manual_seed(0)
    cache = random_cache(2, 2, 4, dtype)
    table = torch.randperm(cache.num_blocks).view(2, -1).int()
    batch = flat_batch([(0, 5, [0] * 9), (1, 11, [0])], table, 4)
    q, k, v = torch.randn(10, 4 + 2 + 2, HEAD_DIM).to(dtype).split((4, 2, 2), dim=1)
    expected = attention_reference((q, k, v), copy_of(cache.layers[0]), batch, window, sinks)
    ops = CpuOps(KERNELS, TORCH)
    plan = ops.plan_attention(batch, cache, window)
    assert isinstance(plan, AttentionPlan) == (dtype != torch.float32)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    actual = ops.attention(q, k, v, cache.layers[0], plan, sinks)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
