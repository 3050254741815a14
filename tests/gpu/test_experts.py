"""gate_up and down over pairs, sorted and not, against float64 on the weights as they are held."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.families import Swiglu
from octavo.model.kernels.gpu.configs import Config, arch_of, choose
from octavo.model.kernels.gpu.experts import down, down_reference, gate_up, gate_up_reference
from octavo.model.kernels.gpu.sort import sort_pairs
from octavo.model.ops.experts import activated
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor
from tests.gpu.stacks import Kind, activations, each_checkpoint_kind, each_kind, make, ragged

CONFIG = Config(rows=32, tokens=16, inputs=64, splits=1, warps=4, stages=2)


def compare(
    kind: Kind,
    ids: Tensor,
    sizes: tuple[int, int, int],
    config: Config,
    dtype: torch.dtype | None = None,
    unsorted: bool = False,
) -> None:
    """sizes: E, H, I."""
    num_experts, hidden, inner_size = sizes
    dtype, device = dtype or activations(kind), ids.device
    up_stack, up_dense = make(kind, dtype, (num_experts, 2 * inner_size, hidden), device)
    down_stack, down_dense = make(kind, dtype, (num_experts, hidden, inner_size), device)
    x = torch.randn(ids.shape[0], hidden, device=device).to(dtype)
    pairs = ids.view(-1) if unsorted else sort_pairs(ids, num_experts, config.tokens)
    order = torch.arange(ids.numel(), device=device) if isinstance(pairs, Tensor) else pairs.order.long()

    inner = gate_up(x, up_stack, pairs, ids.shape[1], config)
    expected = gate_up_reference(x, up_stack, up_dense, ids, order)
    assert inner.dtype == dtype
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-6 * hidden**0.5)
    if up_stack.kind == "int4":  # sums of 16 + quant are taken off again
        tolerance = max(tolerance, 1e-3)
    torch.testing.assert_close(inner.double(), expected, rtol=tolerance, atol=0.1 * tolerance)

    partials = down(inner, down_stack, pairs, config)
    expected = down_reference(inner, down_dense, ids, order)
    assert partials.shape == (config.splits, ids.numel(), hidden) and partials.dtype == torch.float32
    torch.testing.assert_close(partials.double().sum(0), expected, rtol=1e-5, atol=1e-6 * inner_size**0.5)


@each_kind
def test_ragged_loads(device: torch.device, kind: Kind) -> None:
    compare(kind, ragged(23, 2, 5, device), (5, 128, 48), CONFIG)


@each_kind
def test_sizes_that_are_no_multiples_of_a_tile(device: torch.device, kind: Kind) -> None:
    compare(kind, ragged(5, 2, 3, device), (3, 200, 72), replace(CONFIG, splits=2))


@each_checkpoint_kind
def test_kinds_of_checkpoints(device: torch.device, kind: Kind) -> None:
    """Three tiles of inputs and two groups of 256, the last of each cut off, in two splits."""
    compare(kind, ragged(3, 1, 2, device), (2, 328, 24), replace(CONFIG, splits=2))


@pytest.mark.parametrize("activation", [Swiglu(), Swiglu(1.702, 0.5, 1.0), Swiglu(limit=0.3), Swiglu(alpha=2.0)])
@pytest.mark.parametrize("biased", [True, False])
def test_biases_and_activations(device: torch.device, biased: bool, activation: Swiglu) -> None:
    """The limits are so low that gates and ups lie beyond them, on both sides."""
    stack, dense = make(torch.float32, torch.float32, (3, 2 * 40, 64), device)
    bias = torch.randn(3, 2 * 40, device=device) if biased else None
    stack = replace(stack, bias=bias, activation=activation)
    x, ids = torch.randn(5, 64, device=device), ragged(5, 2, 3, device)
    pairs = sort_pairs(ids, 3, CONFIG.tokens)
    inner = gate_up(x, stack, pairs, 2, CONFIG)
    expected = gate_up_reference(x, stack, dense, ids, pairs.order.long())
    torch.testing.assert_close(inner.double(), expected, rtol=1e-5, atol=1e-5)
    plain = activated(*(x @ dense[0].T + (0 if bias is None else bias[0])).chunk(2, -1), activation)  # the seam's
    alone = gate_up_reference(x, stack, dense, torch.zeros(5, 1, dtype=torch.int32), torch.arange(5))
    torch.testing.assert_close(plain.double(), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [Int8RowMajor, Int4RowMajor, Fp8RowMajor], ids=lambda kind: kind.__name__)
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


@each_kind
def test_pairs_that_are_not_sorted(device: torch.device, kind: Kind) -> None:
    ids = torch.tensor([[3, 1], [1, 0]], dtype=torch.int32, device=device)  # an expert in common
    compare(kind, ids, (4, 136, 40), replace(CONFIG, splits=2), unsorted=True)


@pytest.mark.parametrize("rows", [[[0]], [[0], [0]], [[1], [0]], [[2, 0, 1], [1, 2, 0]]])
def test_any_few_choices(device: torch.device, rows: list[list[int]]) -> None:
    ids = torch.tensor(rows, dtype=torch.int32, device=device)
    compare(torch.float32, ids, (3, 64, 32), replace(CONFIG, tokens=8), unsorted=True)


def test_a_row_does_not_depend_on_the_others(device: torch.device) -> None:
    stack, _ = make(Int8RowMajor, torch.bfloat16, (3, 64, 128), device)
    x, ids = torch.randn(9, 128, device=device).bfloat16(), ragged(9, 1, 3, device)
    together = sort_pairs(ids, 3, CONFIG.tokens)
    rows = gate_up(x, stack, together, 1, CONFIG)
    place = together.order.tolist().index(4)
    alone = gate_up(x[4:5], stack, sort_pairs(ids[4:5], 3, CONFIG.tokens), 1, CONFIG)
    torch.testing.assert_close(rows[place], alone[0], rtol=0, atol=0)


def test_a_tile_is_never_wider_than_a_group(device: torch.device) -> None:
    compare(Int8GroupedRowMajor, ragged(3, 1, 2, device), (2, 256, 16), replace(CONFIG, inputs=256))


def test_what_does_not_fit_together(device: torch.device) -> None:
    stack, _ = make(Int8GroupedRowMajor, torch.bfloat16, (2, 64, 256), device)
    x, pairs = torch.randn(40, 256, device=device).bfloat16(), sort_pairs(ragged(40, 1, 2, device), 2, 16)
    with pytest.raises(ValueError, match="tiles of 8"):
        gate_up(x, stack, pairs, 1, replace(CONFIG, tokens=8))
    with pytest.raises(ValueError, match="256 inputs"):
        down(x[:, :128], stack, pairs, CONFIG)


@pytest.mark.cuda
@each_kind
@pytest.mark.parametrize("tokens", [1, 2, 8, 64, 600])
def test_the_shapes_of_mixtral(device: torch.device, kind: Kind, tokens: int) -> None:
    arch, op = arch_of(torch.cuda.get_device_capability()), "few" if tokens <= 2 else "experts"
    name = make(kind, activations(kind), (1, 16, 256), device)[0].kind
    config = choose(f"{op}.gate_up", name, (2 * 14336, 4096), tokens, arch)
    splits = choose(f"{op}.down", name, (4096, 14336), tokens, arch).splits
    compare(kind, ragged(tokens, 2, 8, device), (8, 4096, 14336), replace(config, splits=splits), unsorted=tokens <= 2)
