"""Rows whose inputs lie in the order of each pair's expert."""

import pytest
import torch

from octavo.model.kernels.gpu.gather import gather, gather_reference


@pytest.mark.parametrize(("tokens", "top_k", "inputs"), [(1, 1, 64), (5, 2, 1100)])
def test_rows_for_each_pair(device: torch.device, tokens: int, top_k: int, inputs: int) -> None:
    order = torch.stack([torch.randperm(inputs) for _ in range(4)]).int().to(device)
    ids = torch.randint(0, 4, (tokens, top_k), dtype=torch.int32, device=device)
    x = torch.randn(tokens, inputs, device=device).bfloat16()
    assert gather(x, ids, order).equal(gather_reference(x, ids, order))
