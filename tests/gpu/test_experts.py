"""gate_up and down over sorted pairs against float64 on the weights as they are held."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.kernels.gpu.configs import Config, arch_of, choose
from model.kernels.gpu.experts import down, down_reference, gate_up, gate_up_reference
from model.kernels.gpu.sort import sort_pairs
from model.memory import zeros_on
from model.rows import Fp8Rows, Int4Rows, Int8GroupRows, Int8Rows, RowWeight, Stack

KINDS = [torch.bfloat16, torch.float16, torch.float32, Int8Rows, Int8GroupRows, Int4Rows, Fp8Rows]
Kind = torch.dtype | type[RowWeight]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind).split(".")[-1].rstrip("'>"))
CONFIG = Config(rows=32, tokens=16, inputs=64, splits=1, warps=4, stages=2)


def make(kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device) -> tuple[Stack, Tensor]:
    """Random weights [E, out, in] as a stack, and what they are held as, [E, out, in] float32."""
    torch.manual_seed(sum(shape))
    dense = torch.randn(shape, device=device) / shape[2] ** 0.5
    if isinstance(kind, torch.dtype):
        dense = dense.to(dtype)
        return Stack.of(dense.unbind()), dense.float()
    views = kind.stack(shape[0], shape[1:], zeros_on(device))
    for view, rows in zip(views, dense, strict=True):
        view.fill(rows, 0)
    return Stack.of(views), torch.stack([view.dense() for view in views])


def activations(kind: Kind) -> torch.dtype:
    return kind if isinstance(kind, torch.dtype) else torch.bfloat16


def compare(
    kind: Kind, ids: Tensor, sizes: tuple[int, int, int], config: Config, dtype: torch.dtype | None = None
) -> None:
    """sizes: E, H, I."""
    num_experts, hidden, inner_size = sizes
    dtype = dtype or activations(kind)
    device = ids.device
    up_stack, up_dense = make(kind, dtype, (num_experts, 2 * inner_size, hidden), device)
    down_stack, down_dense = make(kind, dtype, (num_experts, hidden, inner_size), device)
    x = torch.randn(ids.shape[0], hidden, device=device).to(dtype)
    pairs = sort_pairs(ids, num_experts, config.tokens)
    order = pairs.order.long()

    inner = gate_up(x, up_stack, pairs, ids.shape[1], config)
    expected = gate_up_reference(x, up_dense, ids, order)
    assert inner.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    if kind is Int4Rows:  # sums of 16 + quant are taken off again
        tolerance = max(tolerance, 1e-3)
    torch.testing.assert_close(inner.double(), expected, rtol=tolerance, atol=max(tolerance, 1e-5) * 0.1)

    partials = down(inner, down_stack, pairs, config)
    expected = down_reference(inner, down_dense, ids, order)
    assert partials.shape == (config.splits, ids.numel(), hidden) and partials.dtype == torch.float32
    torch.testing.assert_close(partials.double().sum(0), expected, rtol=1e-5, atol=2e-6)


def ragged(tokens: int, top_k: int, num_experts: int, device: torch.device) -> Tensor:
    """Different experts for each token; the last one gets none, the first one most."""
    torch.manual_seed(tokens)
    weights = torch.rand(tokens, num_experts)
    weights[:, 0] += 0.7
    if num_experts > top_k:
        weights[:, -1] = 0
    return weights.topk(top_k).indices.to(device, torch.int32)


@each_kind
def test_ragged_loads(device: torch.device, kind: Kind) -> None:
    compare(kind, ragged(23, 2, 5, device), (5, 128, 48), CONFIG)


@each_kind
def test_sizes_that_are_no_multiples_of_a_tile(device: torch.device, kind: Kind) -> None:
    compare(kind, ragged(5, 2, 3, device), (3, 200, 72), replace(CONFIG, splits=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [Int8Rows, Int4Rows, Fp8Rows], ids=lambda kind: kind.__name__)
def test_other_activations(device: torch.device, kind: Kind, dtype: torch.dtype) -> None:
    compare(kind, ragged(3, 2, 2, device), (2, 128, 32), CONFIG, dtype)


@pytest.mark.parametrize("splits", [1, 2, 4, 5])
def test_splits(device: torch.device, splits: int) -> None:
    compare(torch.float32, ragged(4, 2, 3, device), (3, 64, 200), replace(CONFIG, splits=splits))


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (8, 1), (8, 2), (3, 3)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_and_choices(device: torch.device, tokens: int, num_experts: int, top_k: int) -> None:
    compare(torch.float32, ragged(tokens, top_k, num_experts, device), (num_experts, 64, 32), CONFIG)


@pytest.mark.parametrize("pairs", [15, 16, 17, 33])
def test_an_expert_whose_pairs_end_near_a_tile(device: torch.device, pairs: int) -> None:
    ids = torch.ones(pairs, 1, dtype=torch.int32, device=device)
    compare(torch.bfloat16, ids, (3, 64, 32), CONFIG)


@pytest.mark.parametrize("blocks", [8, 17])
def test_bands_of_blocks(device: torch.device, blocks: int) -> None:
    config = Config(rows=16, tokens=16, inputs=32)
    compare(torch.float32, ragged(9, 2, 2, device), (2, 40, 8 * blocks - 3), config)


def test_a_row_does_not_depend_on_the_others(device: torch.device) -> None:
    stack, _ = make(Int8Rows, torch.bfloat16, (3, 64, 128), device)
    x, ids = torch.randn(9, 128, device=device).bfloat16(), ragged(9, 1, 3, device)
    together = sort_pairs(ids, 3, CONFIG.tokens)
    rows = gate_up(x, stack, together, 1, CONFIG)
    place = together.order.tolist().index(4)
    alone = gate_up(x[4:5], stack, sort_pairs(ids[4:5], 3, CONFIG.tokens), 1, CONFIG)
    torch.testing.assert_close(rows[place], alone[0], rtol=0, atol=0)


def test_what_does_not_fit_together(device: torch.device) -> None:
    stack, _ = make(Int8GroupRows, torch.bfloat16, (2, 64, 256), device)
    x, pairs = torch.randn(40, 256, device=device).bfloat16(), sort_pairs(ragged(40, 1, 2, device), 2, 16)
    with pytest.raises(ValueError, match="tiles of 8"):
        gate_up(x, stack, pairs, 1, replace(CONFIG, tokens=8))
    with pytest.raises(ValueError, match="256 inputs"):
        down(x[:, :128], stack, pairs, CONFIG)
    with pytest.raises(ValueError, match="groups of 128"):
        gate_up(x, stack, pairs, 1, replace(CONFIG, inputs=256))


@pytest.mark.cuda
@each_kind
@pytest.mark.parametrize("tokens", [1, 64, 600])
def test_the_shapes_of_mixtral(device: torch.device, kind: Kind, tokens: int) -> None:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(kind) or kind.kind
    arch = arch_of(torch.cuda.get_device_capability())
    config = choose("experts.gate_up", name, (2 * 14336, 4096), tokens, arch)
    compare(kind, ragged(tokens, 2, 8, device), (8, 4096, 14336), config)
