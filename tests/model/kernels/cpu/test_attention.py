"""Compares attention in C with its reference on every instruction set of the machine, and its rows bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kernels.cpu.library import Library, library
from octavo.model.kernels.cpu.structs import PagesStruct, PassStruct, RotationStruct
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import RotaryEmbedding, Rotation
from octavo.model.ops.attention import attention_reference
from tests.model.pages import flat_batch

KERNELS = library()
LEVELS = [] if KERNELS is None else [level for level in KERNELS.levels() if KERNELS.set_level(level)]
SPAN = 128  # keys of one running softmax in C

pytestmark = pytest.mark.skipif(KERNELS is None, reason="the C kernels were not built")

Rows = Sequence[tuple[int, int, int]]  # (sequence, tokens before, new tokens)


def config(kv_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_experts=1,
        num_experts_per_tok=1,
    )


@dataclass(frozen=True)
class Case:
    """A Case is a few sequences with the q, k and v of all positions, and pages that hold noise where nobody wrote."""

    heads: Tensor  # [sequences, positions, Hq + 2 Hkv, D]
    kv_heads: int
    table: Tensor
    block_size: int
    window: int | None = None
    sinks: Tensor | None = None  # [Hq]

    @classmethod
    def random(cls, shape: tuple[int, int], kv_heads: int, group: int, head_dim: int, block_size: int) -> "Case":
        sequences, positions = shape
        heads = torch.randn(sequences, positions, kv_heads * (group + 2), head_dim)
        table = torch.randperm(sequences * -(-positions // block_size)).view(sequences, -1).int()
        return cls(heads, kv_heads, table, block_size)

    def pages(self) -> LayerCache:
        shape = config(self.kv_heads, self.heads.shape[-1])
        layer = KVCache.allocate(shape, self.table.numel(), self.block_size, torch.float32, "cpu").layers[0]
        layer.keys.normal_()
        layer.values.normal_()
        return layer

    def batch(self, rows: Rows) -> ForwardBatch:
        return flat_batch([(n, before, [0] * new) for n, before, new in rows], self.table, self.block_size)

    def split(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Returns views of one buffer, like a layer's: q [T, Hq, D], k and v [T, Hkv, D]."""
        new = torch.cat([self.heads[n, before : before + count] for n, before, count in rows])
        q, k, v = new.split((new.shape[1] - 2 * self.kv_heads, self.kv_heads, self.kv_heads), dim=1)
        return q, k, v

    def run(self, kernels: Library, layer: LayerCache, rows: Rows) -> Tensor:
        """Returns the result [T, Hq * D]; the new keys and values are in the layer afterwards."""
        batch = self.batch(rows)
        forward = PassStruct.of(batch, self.block_size, self.window)
        return kernels.attention(self.split(rows), forward, None, PagesStruct.of(layer), self.sinks)

    def whole(self, kernels: Library, sequence: int = 0) -> Tensor:
        """Returns all positions of one sequence at once."""
        return self.run(kernels, self.pages(), [(sequence, 0, self.heads.shape[1])])


def compare(case: Case, rows: Rows, levels: Sequence[str] = LEVELS) -> None:
    assert KERNELS is not None
    layer = case.pages()
    before = LayerCache(*(pages.clone() for pages in (layer.keys, layer.values, layer.key_slots, layer.value_slots)))
    expected = attention_reference(case.split(rows), before, case.batch(rows), case.window, case.sinks)
    for level in levels:
        KERNELS.set_level(level)
        torch.testing.assert_close(case.run(KERNELS, layer, rows), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.keys, before.keys)
        assert torch.equal(layer.values, before.values)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), min_size=1, max_size=4),
    block_size=st.sampled_from([1, 4, 5, 16]),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 9)]),
    head_dim=st.sampled_from([2, 8, 16, 20, 64]),
    window=st.sampled_from([None, 1, 3, 8, 33]),
    sinks=st.sampled_from([None, -100.0, 0.0, 3.0, 100.0]),
)
def test_any_ragged_batch(
    lengths: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    sinks: float | None,
) -> None:
    torch.manual_seed(len(lengths))
    case = replace(Case.random((len(lengths), 40), *heads, head_dim, block_size), window=window)
    case = replace(case, sinks=None if sinks is None else sinks + torch.randn(heads[0] * heads[1]))
    compare(case, [(n, before, min(new, 40 - before)) for n, (before, new) in enumerate(lengths)])


@pytest.mark.parametrize("sinks", [None, 4.0])
@pytest.mark.parametrize("window", [None, 70, 300])
@pytest.mark.parametrize("end", [SPAN - 1, SPAN, SPAN + 1, 2 * SPAN + 40])
def test_long_contexts(end: int, window: int | None, sinks: float | None) -> None:
    """Attends for one new token and for several, with keys in one span and in three; a sink counts once for all."""
    torch.manual_seed(end)
    case = replace(Case.random((2, end), 2, 2, 16, 16), window=window)
    case = replace(case, sinks=None if sinks is None else sinks + torch.randn(4))
    compare(case, [(0, end - 1, 1), (1, end - 3, 3)])


@pytest.mark.parametrize("group", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("head_dim", [16, 48, 64, 72, 128])
def test_any_shape_of_heads(head_dim: int, group: int) -> None:
    """Takes outputs and queries in whole blocks of registers, and with some left over."""
    torch.manual_seed(head_dim + group)
    end = SPAN + 40
    case = replace(Case.random((2, end), 2, group, head_dim, 16), window=SPAN + 9)
    compare(case, [(0, end - 1, 1), (1, end - 3, 3)])


def test_padding_rows_give_zeros_and_write_nothing(kernels: Library) -> None:
    torch.manual_seed(0)
    case = Case.random((2, 9), 2, 2, 8, 4)
    rows, layer = [(0, 6, 1), (1, 0, 1)], case.pages()
    real = case.batch(rows)
    padded = replace(
        real, slots=torch.tensor([int(real.slots[0]), -1]), kv_lens=torch.tensor([7, 0], dtype=torch.int32)
    )
    before = layer.keys.clone()
    forward = PassStruct.of(padded, 4, None)
    out = kernels.attention(case.split(rows), forward, None, PagesStruct.of(layer), torch.randn(4))
    assert out[0].all()
    assert not out[1].any()
    assert (layer.keys != before).flatten(2).any(-1).sum() == 1


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("shape", [(2, 20), (4, 64)])
def test_a_row_is_the_same_bits_however_its_sequence_is_cut(
    kernels: Library, shape: tuple[int, int], window: int | None
) -> None:
    """Computes a sequence whole, in chunks, token by token, and beside another sequence, over more than one span."""
    torch.manual_seed(0)
    length = SPAN + 37
    case = replace(Case.random((2, length), 2, *shape, 16), window=window, sinks=torch.randn(2 * shape[0]))
    whole = case.whole(kernels)
    for chunk in (1, 7, 130):
        layer = case.pages()
        parts = [
            case.run(kernels, layer, [(0, start, min(chunk, length - start))]) for start in range(0, length, chunk)
        ]
        assert torch.equal(torch.cat(parts), whole)
    layer = case.pages()
    case.run(kernels, layer, [(0, 0, 90), (1, 0, 40)])
    beside = case.run(kernels, layer, [(1, 40, 60), (0, 90, length - 90)])
    assert torch.equal(beside[60:], whole[90:])


def test_the_number_of_threads_changes_no_bit(kernels: Library) -> None:
    torch.manual_seed(0)
    case, threads = Case.random((1, 2 * SPAN), 1, 3, 16, 16), torch.get_num_threads()
    layer = case.pages()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        kernels.follow_torch()
        results += [case.whole(kernels)[-1], case.run(kernels, layer, [(0, 0, 2 * SPAN)])[-1]]
        results.append(case.run(kernels, layer, [(0, 2 * SPAN - 1, 1)])[0])
    torch.set_num_threads(threads)
    kernels.follow_torch()
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("head_dim", [40, 64])
def test_every_level_gives_the_same_bits(head_dim: int) -> None:
    assert KERNELS is not None
    torch.manual_seed(0)
    case = replace(Case.random((1, SPAN + 20), 2, 3, head_dim, 16), sinks=torch.randn(6))
    results = [case.whole(KERNELS) for level in LEVELS if KERNELS.set_level(level)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_a_row_does_not_see_may_hold_anything(kernels: Library) -> None:
    """Puts NaN or infinity into later tokens, other sequences' slots, unwritten slots and beyond the window."""
    torch.manual_seed(0)
    case = replace(Case.random((2, 60), 2, 2, 16, 4), window=25)
    expected = case.whole(kernels)
    layer = case.pages()
    for pages in (layer.keys, layer.values):
        pages.fill_(float("nan"))
    case.heads[0, 40:] = float("nan")
    assert torch.equal(case.run(kernels, layer, [(0, 0, 60)])[:40], expected[:40])
    layer.keys[case.table[0, :2].long()] = float("inf")  # the oldest eight
    assert torch.equal(case.run(kernels, layer, [(0, 39, 1)])[0], expected[39])


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 4, 5])  # a query, a key, a value
def test_what_is_not_finite_does_not_vanish(kernels: Library, part: int, what: float) -> None:
    torch.manual_seed(0)
    case = Case.random((1, 50), 1, 4, 16, 16)
    expected = case.whole(kernels)
    case.heads[0, 30, part] = what
    actual = case.whole(kernels).view(50, 4, 16)
    hit = torch.zeros(50, 4, dtype=torch.bool)
    if part == 0:
        hit[30, 0] = True
    else:
        hit[30:] = True
    if part == 4 and what == float("inf"):  # a score of minus infinity may stand for a weight of zero
        assert actual.isfinite().all(-1)[:30].all()
        return
    assert torch.equal(~actual.isfinite().all(-1), hit)
    assert torch.equal(actual[~hit], expected.view(50, 4, 16)[~hit])


@pytest.mark.parametrize("head_dim", [2, 40, 64])
def test_rotation_on_the_way(kernels: Library, head_dim: int) -> None:
    torch.manual_seed(head_dim)
    case, rows = Case.random((2, 30), 2, 2, head_dim, 4), [(0, 9, 3), (1, 21, 1)]
    batch, layer = case.batch(rows), case.pages()
    rotation: Rotation = RotaryEmbedding.create(config(2, head_dim), torch.device("cpu")).at(batch.positions)
    q, k, v = case.split(rows)
    untouched = case.pages()
    untouched.keys.copy_(layer.keys)
    untouched.values.copy_(layer.values)
    expected = attention_reference((rotation(q), rotation(k), v), untouched, batch, None)
    forward, angles = PassStruct.of(batch, 4, None), RotationStruct.of(rotation)
    actual = kernels.attention((q, k, v), forward, angles, PagesStruct.of(layer))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.keys, untouched.keys, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.values, untouched.values)
