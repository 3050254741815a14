"""Compares norm, rotary positions and embedding with their formulas."""

import math
from dataclasses import replace

import pytest
import torch

from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding, RowNorm
from octavo.model.rope_config import Llama3Scaling
from tests.tiny import TINY_CONFIG

CONFIG = replace(TINY_CONFIG, head_dim=8, rope_theta=1e4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_norm_is_the_formula(dtype: torch.dtype, tolerance: float, scale: float) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(5, 24) * scale).to(dtype), torch.randn(24).to(dtype)
    wide = x.double()
    expected = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    actual = RMSNorm.create(weight, 1e-5)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_norm_of_rows_one_by_one_is_the_norm(rows: int) -> None:
    norm = RMSNorm.create(torch.randn(24), 1e-5)
    x = torch.randn(rows, 24)
    torch.testing.assert_close(RowNorm(norm.weight, norm.root_eps)(x), norm(x))


def test_norm_of_zeros_is_zero() -> None:
    assert not RMSNorm.create(torch.ones(8), 1e-5)(torch.zeros(2, 8)).any()


def test_rotation_turns_each_pair_by_its_angle() -> None:
    torch.manual_seed(0)
    heads, positions = torch.randn(3, 2, 8), torch.tensor([0, 1, 300])
    rotated = RotaryEmbedding.create(CONFIG, torch.device("cpu")).at(positions)(heads)
    pairs = torch.complex(heads[..., :4], heads[..., 4:]).to(torch.complex128)
    angles = positions.double()[:, None] * 1e4 ** (-torch.arange(4) / 4).double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotated.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rotated[0], heads[0])


def test_llama_3_stretches_the_slow_pairs_only() -> None:
    # Within 64 tokens the pairs of a head of 16 turn 10.2, 3.2, 1.02, 0.32 ... times: only two are between the bounds.
    scaled = replace(CONFIG, head_dim=16, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64))
    plain = RotaryEmbedding.create(replace(CONFIG, head_dim=16), torch.device("cpu")).inv_freq
    ratio = (RotaryEmbedding.create(scaled, torch.device("cpu")).inv_freq / plain).tolist()
    assert ratio[0] == 1
    share = (64 / (2 * math.pi * 10**0.5) - 1) / 3  # of the way from one bound to the other
    assert ratio[1] == pytest.approx(share + (1 - share) / 8)
    assert 1 / 8 < ratio[2] < ratio[1]
    assert ratio[3:] == [1 / 8] * 5


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    rotary = RotaryEmbedding.create(CONFIG, torch.device("cpu"))
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(at: int, to: int) -> float:
        return float((rotary.at(torch.tensor([at]))(query) * rotary.at(torch.tensor([to]))(key)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)


def test_rotation_keeps_the_dtype() -> None:
    rotation = RotaryEmbedding.create(CONFIG, torch.device("cpu")).at(torch.tensor([3]))
    assert rotation(torch.ones(1, 2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_embedding_looks_up_in_the_dtype_of_the_activations() -> None:
    table = torch.randn(16, 8).bfloat16()
    rows = Embedding(table, torch.float32)(torch.tensor([3, 3, 0]))
    assert torch.equal(rows, table[[3, 3, 0]].float())
