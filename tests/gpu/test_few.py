"""The experts of one or two tokens against float64 on the weights as they are held."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.kernels.gpu.combine import combine_reference
from model.kernels.gpu.configs import Config, arch_of, choose
from model.kernels.gpu.experts import down_reference, gate_up_reference
from model.kernels.gpu.few import down, gate_up
from tests.gpu.stacks import Kind, activations, each_kind, make, name_of

CONFIG = Config(rows=32, tokens=16, inputs=64, splits=1, warps=4, stages=2)


def compare(kind: Kind, ids: Tensor, sizes: tuple[int, int, int], config: Config) -> None:
    """sizes: E, H, I."""
    num_experts, hidden, inner_size = sizes
    dtype, device = activations(kind), ids.device
    up_stack, up_dense = make(kind, dtype, (num_experts, 2 * inner_size, hidden), device)
    down_stack, down_dense = make(kind, dtype, (num_experts, hidden, inner_size), device)
    normed, x = torch.randn(2, ids.shape[0], hidden, device=device).to(dtype)
    weights = torch.rand(ids.shape, device=device)
    order = torch.arange(ids.numel(), device=device)
    tolerance = 4 * torch.finfo(dtype).eps

    inner = gate_up(normed, ids, up_stack, config)
    expected = gate_up_reference(normed, up_dense, ids, order)
    assert inner.dtype == dtype
    torch.testing.assert_close(inner.double(), expected, rtol=tolerance, atol=max(tolerance, 1e-5) * 0.1)

    total = down(inner, ids, weights, down_stack, x, config)
    outputs = down_reference(inner, down_dense, ids, order)
    expected, _ = combine_reference(outputs[None], weights, x, None, 0.0)
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=max(tolerance, 1e-5) * 0.1)


def choices(device: torch.device, *rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device)


@each_kind
def test_two_tokens_with_an_expert_in_common(device: torch.device, kind: Kind) -> None:
    compare(kind, choices(device, (3, 1), (1, 0)), (4, 136, 40), replace(CONFIG, splits=2))


@each_kind
def test_one_token(device: torch.device, kind: Kind) -> None:
    compare(kind, choices(device, (2, 0)), (3, 128, 64), CONFIG)


@pytest.mark.parametrize("rows", [((0,),), ((0,), (0,)), ((1,), (0,)), ((2, 0, 1), (1, 2, 0))])
def test_any_number_of_choices(device: torch.device, rows: tuple[tuple[int, ...], ...]) -> None:
    compare(torch.float32, choices(device, *rows), (1 + max(map(max, rows)), 64, 32), replace(CONFIG, tokens=8))


@pytest.mark.cuda
@each_kind
@pytest.mark.parametrize("rows", [((6, 1),), ((7, 0), (0, 3))])
def test_the_shapes_of_mixtral(device: torch.device, kind: Kind, rows: tuple[tuple[int, ...], ...]) -> None:
    arch = arch_of(torch.cuda.get_device_capability())
    config = choose("few.down", name_of(kind), (4096, 14336), len(rows), arch)
    compare(kind, choices(device, *rows), (8, 4096, 14336), config)
