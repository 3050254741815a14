"""Blocks mean what the package gguf reads in them, bit for bit, and a Kind holds the same integers and scales."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from octavo.model.gguf import blocks
from octavo.model.gguf.blocks import KINDS, WIDE8, Blocks, converted, joined
from octavo.model.gguf.types import TensorType
from octavo.model.weights.kinds import INT8_FINE, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.tiles import TiledWeight, TileLayout
from tests.model.gguf import packing

QUANTISED = [each for each in TensorType if each.weights > 1]
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
CPU = torch.device("cpu")


def random_blocks(type: TensorType, rows: int = 5, count: int = 4, seed: int = 0) -> Blocks:
    """Returns blocks of any bytes, whose float16 numbers are finite."""
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows, count, type.bytes), dtype=np.uint8)
    for at in HALVES.get(type.name, (0,)):
        numbers = generator.standard_normal((rows, count, 1)).astype(np.float16)
        data[..., at : at + 2] = numbers.view(np.uint8)
    return Blocks(type, torch.from_numpy(data))


def read_by_gguf(held: Blocks) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(held.data.flatten(1).numpy(), Type[held.type.name]))


@pytest.mark.parametrize("type", QUANTISED)
def test_weights_are_those_that_gguf_reads(type: TensorType) -> None:
    held = random_blocks(type)
    assert torch.equal(held.dense(), read_by_gguf(held))


@pytest.mark.parametrize("type", QUANTISED)
def test_the_table_of_types_is_ggufs(type: TensorType) -> None:
    assert Type[type.name].value == type.number
    assert gguf.GGML_QUANT_SIZES[Type[type.name]] == (type.weights, type.bytes)


def test_integers_and_scales_of_q4_k_are_the_files() -> None:
    block = packing.rounded(np.random.default_rng(1).standard_normal(256).astype(np.float32), 15)
    parts = Blocks(TensorType.Q4_K, bytes_of(packing.q4_k(block))).parts(KINDS[TensorType.Q4_K])
    assert parts.codes[0].tolist() == block.codes
    assert parts.scales is not None and parts.scales[0].tolist() == block.scales
    assert parts.offsets is not None and parts.offsets[0].tolist() == block.minima
    assert parts.coarse is not None and parts.coarse[0, 0].tolist() == [block.d, -block.dmin]


def test_integers_and_scales_of_q5_k_are_the_files() -> None:
    block = packing.rounded(np.random.default_rng(2).standard_normal(256).astype(np.float32), 31)
    parts = Blocks(TensorType.Q5_K, bytes_of(packing.q5_k(block))).parts(KINDS[TensorType.Q5_K])
    assert (parts.codes[0].int() - 128).tolist() == block.codes
    assert parts.scales is not None and parts.scales[0].tolist() == block.scales
    assert parts.offsets is not None and parts.offsets[0].tolist() == block.minima


def test_weights_of_q6_k() -> None:
    generator = np.random.default_rng(3)
    codes, scales = generator.integers(0, 64, 256).tolist(), generator.integers(-128, 128, 16).tolist()
    held = Blocks(TensorType.Q6_K, bytes_of(packing.q6_k(codes, scales, 0.25)))
    assert held.dense()[0].tolist() == [0.25 * scales[n // 16] * (codes[n] - 32) for n in range(256)]


def bytes_of(packed: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())[None, None]


@pytest.mark.parametrize("type", KINDS)
def test_tiles_hold_every_weight(type: TensorType) -> None:
    held = random_blocks(type, rows=20, count=2 * 256 // type.weights)
    weight = TiledWeight.empty(TileLayout(held.kind, held.shape), zeros_on(CPU))
    weight.put(held.parts(held.kind), 0)
    assert torch.equal(weight.dense(), read_by_gguf(held))


@pytest.mark.parametrize("first", QUANTISED)
@pytest.mark.parametrize("second", QUANTISED)
def test_two_types_in_one_matrix_keep_their_weights(first: TensorType, second: TensorType) -> None:
    """Only Q6_K is rounded, and as it would be alone."""
    both = [random_blocks(type, count=512 // type.weights, seed=seed) for seed, type in enumerate((first, second))]
    kind = joined(held.kind for held in both)
    for held in both:
        alone = held.parts(held.kind).unpacked(held.kind).dense()
        assert torch.equal(held.parts(kind).unpacked(kind).dense(), alone)
        assert held.type is TensorType.Q6_K or torch.equal(alone, read_by_gguf(held))


def test_a_joined_kind_is_no_wider_than_it_must_be() -> None:
    q4_0, q8_0, q4_1 = KINDS[TensorType.Q4_0], KINDS[TensorType.Q8_0], KINDS[TensorType.Q4_1]
    q4_k, q5_k = KINDS[TensorType.Q4_K], KINDS[TensorType.Q5_K]
    assert joined([q4_k, q4_k]) == q4_k and joined([q4_k, q5_k]) == q5_k
    assert joined([q4_0, q8_0]) == INT8_FINE and joined([q4_1, q8_0]).offset is Offset.MINIMUM
    assert joined([q4_k, q8_0]) == WIDE8 and WIDE8.scale is Scale.FLOAT32


def test_what_q6_k_loses() -> None:
    """This is the loss that the log and docs/gguf.md state, of normal weights."""
    weights = np.random.default_rng(4).standard_normal((64, 1024)).astype(np.float32)
    data = torch.from_numpy(packing.quantised(weights, "Q6_K")).unflatten(1, (-1, 210))
    held = Blocks(TensorType.Q6_K, data)
    lost = held.parts(held.kind).unpacked(held.kind).dense() - held.dense()
    error = (lost.norm() / held.dense().norm()).item()
    assert 0.005 < error < 0.0055


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("_halves", lambda blocks, first: _swapped(blocks, first)),
        ("_fifth_bits", lambda blocks, first: torch.zeros(*blocks.shape[:2], 32, dtype=torch.uint8)),
    ],
)
def test_a_wrong_order_would_be_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object) -> None:
    monkeypatch.setattr(blocks, name, wrong)
    held = random_blocks(TensorType.Q5_1)
    assert not torch.equal(held.dense(), read_by_gguf(held))


def _swapped(blocks: torch.Tensor, first: int) -> torch.Tensor:
    data = blocks[..., first : first + 16]
    return torch.cat((data >> 4, data & 15), dim=-1)


def test_parts_of_the_kind_itself_are_not_copied() -> None:
    held = random_blocks(TensorType.Q4_K)
    parts = held.parts(held.kind)
    assert converted(parts, held.kind, held.kind) is parts
