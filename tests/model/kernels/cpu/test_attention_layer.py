"""Compares the sub-layer around attention with the plain one, and what families add: each alone, and all together."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from octavo.model.decoder import Attention, DecoderLayer, ForwardPass
from octavo.model.kernels.cpu.decoder import attention_struct
from octavo.model.kernels.cpu.library import Library, library
from octavo.model.kernels.cpu.structs import PagesStruct, PassStruct, RotationStruct
from octavo.model.kv_cache import LayerCache
from octavo.model.layers import LayerNorm, RMSNorm, RotaryEmbedding
from octavo.model.moe import MoEBlock
from octavo.model.ops.attention import Plan, attention_reference
from octavo.model.ops.experts import experts_reference
from octavo.model.ops.linear import linear_reference
from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.kinds import INT4, INT8, Kind
from octavo.model.weights.tiles import TiledWeight
from tests.model.kernels.cpu.test_attention import LEVELS, Case, Rows, config

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels were not built")

HEADS, KV_HEADS = 4, 2
LENGTH = 30  # positions of a sequence


@dataclass(frozen=True)
class Layer:
    """Holds one attention sub-layer of quantised weights over two sequences of 30 positions."""

    plain: DecoderLayer  # It has no experts.
    rotary: RotaryEmbedding
    case: Case  # its pages and tables; the heads are not used

    @classmethod
    def random(cls, kind: Kind, hidden: int, head_dim: int, terms: int = 2) -> "Layer":
        """Returns a layer whose scores differ, and whose result is about as large as its input.

        With two terms, almost nothing is lost where one side rounds an activation up and the other one down.
        """
        width = HEADS * head_dim
        matrices = (
            TiledWeight.pack(kind, 1.5 * torch.randn(2 * width, hidden) / hidden**0.5, terms=terms),
            TiledWeight.pack(kind, 2 * torch.randn(hidden, width) / width**0.5, terms=terms),
        )
        attention = Attention(*matrices, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=head_dim)
        rotary = RotaryEmbedding.create(config(KV_HEADS, head_dim), torch.device("cpu"))
        norm = RMSNorm.create(0.5 + torch.rand(hidden), 1e-5)
        plain = DecoderLayer(norm, attention, norm, MoEBlock(None, ExpertWeights((), ())))
        return cls(plain, rotary, Case.random((2, LENGTH), KV_HEADS, HEADS // KV_HEADS, head_dim, 4))

    def run(self, kernels: Library, x: Tensor, layer: LayerCache, rows: Rows) -> Tensor:
        batch, attention = self.case.batch(rows), self.plain.attention
        rotation, out = self.rotary.at(batch.positions), x.clone()
        structs = PassStruct.of(batch, 4, attention.window), RotationStruct.of(rotation), PagesStruct.of(layer)
        struct = attention_struct(attention, self.plain.input_norm, self.plain.residual)
        assert struct is not None
        kernels.attention_layer(out, struct, *structs)
        return out

    def reference(self, x: Tensor, layer: LayerCache, rows: Rows) -> Tensor:
        """Runs the plain layer over the references of all seams."""
        batch, window = self.case.batch(rows), self.plain.attention.window

        def attend(q: Tensor, k: Tensor, v: Tensor, pages: LayerCache, plan: Plan, sinks: Tensor | None) -> Tensor:
            return attention_reference((q, k, v), pages, batch, window, sinks)

        ops = Ops(lambda *_: Plan(), attend, experts_reference, linear_reference)
        forward = ForwardPass(ops, {window: Plan()}, self.rotary.at(batch.positions))
        return self.plain.attend(x, layer, forward)

    def adding(self, *names: str) -> "Layer":
        plain = self.plain
        for name in names:
            plain = FEATURES[name](plain)
        return replace(self, plain=plain)


def with_attention(make: Callable[[Attention], dict[str, object]]) -> Callable[[DecoderLayer], DecoderLayer]:
    return lambda layer: replace(layer, attention=replace(layer.attention, **make(layer.attention)))


def norms(queries: int, keys: int) -> dict[str, object]:
    """Returns norms with weights of their own, and with an epsilon that is not the layer's and changes the result."""
    return {
        "q_norm": RMSNorm.create(0.5 + torch.rand(queries), 0.5),
        "k_norm": RMSNorm.create(0.5 + torch.rand(keys), 0.5),
    }


def in_any_order(weight: TiledWeight) -> TiledWeight:
    return replace(weight, order=torch.randperm(weight.shape[1], dtype=torch.int32))


FEATURES: dict[str, Callable[[DecoderLayer], DecoderLayer]] = {
    "qkv bias": with_attention(lambda of: {"qkv_bias": torch.randn(of.qkv.shape[0])}),
    "o bias": with_attention(lambda of: {"o_bias": torch.randn(of.o.shape[0])}),
    "norms of heads": with_attention(lambda of: norms(of.head_dim, of.head_dim)),
    "norms of projections": with_attention(lambda of: norms(HEADS * of.head_dim, KV_HEADS * of.head_dim)),
    "clip": with_attention(lambda of: {"clip": 0.8}),
    "sinks": with_attention(lambda of: {"sinks": 2 + torch.randn(HEADS)}),
    "scale": with_attention(lambda of: {"scale": 0.6}),
    "window": with_attention(lambda of: {"window": 5}),
    "order of qkv": with_attention(lambda of: {"qkv": in_any_order(of.qkv)}),
    "order of o": with_attention(lambda of: {"o": in_any_order(of.o)}),
    "residual": lambda layer: replace(layer, residual=0.22),
}
ALL = [name for name in FEATURES if name != "norms of projections"]
PASSES = ([(0, 0, 21), (1, 0, 9)], [(0, 21, 1), (1, 9, 3)])


def results(layer: Layer, compute: Callable[[Tensor, LayerCache, Rows], Tensor], x: Tensor) -> Tensor:
    """Returns what is added to x [2, LENGTH, H], two sequences, in two passes."""
    pages, added = layer.case.pages(), []
    for rows in PASSES:
        part = torch.cat([x[n, before : before + new] for n, before, new in rows])
        added.append(compute(part, pages, rows) - part)
    return torch.cat(added)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", [INT8, INT4])
@pytest.mark.parametrize(("terms", "tolerance"), [(1, 1e-2), (2, 1e-4)])
@pytest.mark.parametrize("shape", [(64, 16), (40, 10)])
def test_the_whole_sub_layer(
    kernels: Library, kind: Kind, shape: tuple[int, int], terms: int, tolerance: float
) -> None:
    torch.manual_seed(0)
    layer, x = Layer.random(kind, *shape, terms=terms), torch.randn(2, LENGTH, shape[0])
    actual = results(layer, lambda *args: layer.run(kernels, *args), x)
    assert error(actual, results(layer, layer.reference, x)) < tolerance


@pytest.mark.parametrize("shape", [(64, 16), (40, 10)])
@pytest.mark.parametrize("feature", FEATURES)
def test_what_a_family_adds(kernels: Library, feature: str, shape: tuple[int, int]) -> None:
    """Without it, the result would be another."""
    torch.manual_seed(0)
    plain, x = Layer.random(INT8, *shape), torch.randn(2, LENGTH, shape[0])
    layer = plain.adding(feature)
    actual = results(layer, lambda *args: layer.run(kernels, *args), x)
    assert error(actual, results(layer, layer.reference, x)) < 1e-4
    assert error(actual, results(plain, plain.reference, x)) > 5e-2


@pytest.mark.parametrize("norm", ["norms of heads", "norms of projections"])
def test_all_of_it_together(kernels: Library, norm: str) -> None:
    torch.manual_seed(0)
    names = [name for name in ALL if name != "norms of heads"]
    layer, x = Layer.random(INT8, 64, 16).adding(norm, *names), torch.randn(2, LENGTH, 64)
    actual = results(layer, lambda *args: layer.run(kernels, *args), x)
    assert error(actual, results(layer, layer.reference, x)) < 1e-4


@pytest.mark.parametrize("features", [[], ALL], ids=["plain", "all"])
@pytest.mark.parametrize("kind", [INT8, INT4])
def test_a_row_is_the_same_bits_however_it_comes(kernels: Library, kind: Kind, features: list[str]) -> None:
    torch.manual_seed(0)
    layer = Layer.random(kind, 64, 16).adding(*features)
    x = torch.randn(2, LENGTH, 64)
    whole = layer.run(kernels, x[0], layer.case.pages(), [(0, 0, 30)])
    pages = layer.case.pages()
    parts = [layer.run(kernels, x[0, n : n + 1], pages, [(0, n, 1)]) for n in range(11)]
    x[1] *= 1e4  # outliers beside it
    parts.append(layer.run(kernels, torch.cat((x[1, :7], x[0, 11:])), pages, [(1, 0, 7), (0, 11, 19)])[7:])
    assert torch.equal(torch.cat(parts), whole)


def test_every_level_gives_the_same_bits() -> None:
    kernels = library()
    assert kernels is not None
    torch.manual_seed(0)
    layer, x = Layer.random(INT8, 40, 10).adding(*ALL), torch.randn(30, 40)
    found = [layer.run(kernels, x, layer.case.pages(), [(0, 0, 30)]) for level in LEVELS if kernels.set_level(level)]
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_clipped_away(kernels: Library, what: float) -> None:
    """A limit would turn an infinity into a number; one in the input has become a NaN before."""
    torch.manual_seed(0)
    layer, x = Layer.random(INT8, 64, 16).adding("clip"), torch.randn(30, 64)
    x[7, 3] = what
    out = layer.run(kernels, x, layer.case.pages(), [(0, 0, 30)])
    assert out[:7].isfinite().all() and not out[7:].isfinite().any()


def test_what_the_kernels_do_not_take() -> None:
    plain = Layer.random(INT8, 64, 16).plain
    dense = replace(plain.attention, o=plain.attention.o.dense())
    assert attention_struct(dense, plain.input_norm) is None
    assert attention_struct(plain.attention, LayerNorm(torch.ones(64), torch.zeros(64), 1e-5)) is None
