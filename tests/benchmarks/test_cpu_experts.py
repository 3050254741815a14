"""Experts are timed over layers that take turns, and the bytes that are counted are those that a call reads."""

import pytest
import torch

from benchmarks import cpu_experts
from benchmarks.cpu_experts import KINDS, Case, Layer, Shape
from octavo.model.kernels.cpu.library import library
from octavo.model.ops.attention import attention, plan_attention
from octavo.model.ops.experts import experts_reference
from octavo.model.ops.linear import linear_reference
from octavo.model.ops.seams import Ops
from octavo.model.routes import Routing
from octavo.model.weights.memory import HugePages

TINY = Shape(experts=5, top_k=2, hidden=72, width=64)
REFERENCE = Ops(plan_attention, attention, experts_reference, linear_reference)

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels were not built")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_one_of_ordinary_numbers(kind: str) -> None:
    """NaN, infinity or subnormal numbers could take another time."""
    kernels = library()
    assert kernels is not None
    torch.manual_seed(0)
    layer, x = Layer.random(TINY, KINDS[kind], HugePages().zeros), torch.randn(3, TINY.hidden)
    expected = x + layer.block(layer.norm(x), REFERENCE, Routing())
    kernels.experts_layer(x, layer.struct)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)
    assert 0.1 < expected.std() < 10


def test_bytes_are_those_of_the_router_and_of_the_chosen() -> None:
    layer = Layer.random(TINY, KINDS["int8"], HugePages().zeros)
    each = layer.nbytes // TINY.experts
    router = 4 * TINY.experts * TINY.hidden
    assert layer.bytes_read(torch.tensor([[1, 4], [4, 1]])) == router + 2 * each


def test_layers_fill_the_pool_and_take_turns() -> None:
    kernels, size = library(), Layer.random(TINY, KINDS["int4"], HugePages().zeros).nbytes
    assert kernels is not None
    layers = cpu_experts.layers_of(TINY, KINDS["int4"], 3 * size - 1)
    assert len(layers) == 3
    case = Case(kernels, layers, 2)
    assert case.bytes_per_second() > 0


def test_a_table_has_medians_and_ranges() -> None:
    lines = cpu_experts.table("olmoe", {"1 tokens": [(1e9, 0.5), (3e9, 0.25), (2e9, 0.75)]})
    assert lines.splitlines()[-1] == "| 1 tokens | 2.0 (1.0 to 3.0) | 0.50 (0.25 to 0.75) |"
