"""Compares rotary positions and the cache write with their reference, for slots in any order."""

import pytest
import torch

from octavo.model.kernels.gpu.rotary import Heads, rotate_and_store, rotate_and_store_reference
from octavo.model.kv_cache import LayerCache
from octavo.model.layers import RotaryEmbedding, Rotation

BLOCK_SIZE, NUM_BLOCKS = 4, 6
# One last place of each dtype: a fused multiply-add may round the other way.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def poisoned_pages(num_kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
    """NaN wherever nothing was written, in the spare slot too."""

    def slots() -> torch.Tensor:
        return torch.full((NUM_BLOCKS * BLOCK_SIZE + 1, num_kv_heads, dim), float("nan"), dtype=dtype, device=device)

    keys, values = slots(), slots()
    shape = (NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, dim)
    return LayerCache(keys[:-1].view(shape), values[:-1].view(shape), keys, values)


def rotation_at(positions: list[int], dim: int, device: torch.device) -> Rotation:
    inv_freq = 1.0 / 1e6 ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    return RotaryEmbedding(inv_freq).at(torch.tensor(positions, device=device))


@each_dtype
@pytest.mark.parametrize("heads", [(4, 2), (8, 8), (20, 4), (3, 1)])
@pytest.mark.parametrize("dim", [8, 48, 128])
def test_against_the_reference(device: torch.device, dtype: torch.dtype, heads: tuple[int, int], dim: int) -> None:
    """Uses slots across block boundaries, in no order, the last of all, and one that writes nothing."""
    torch.manual_seed(dim)
    slots = torch.tensor([23, 3, 4, -1, 0, 11], device=device)
    qkv = torch.randn(len(slots), (heads[0] + 2 * heads[1]) * dim).to(device, dtype)
    rotation = rotation_at([0, 5, 131071, 7, 900, 1], dim, device)
    pages, expected_pages = (poisoned_pages(heads[1], dim, dtype, device) for _ in range(2))
    q = rotate_and_store(qkv, rotation, slots, pages, Heads(*heads))
    expected = rotate_and_store_reference(qkv, rotation, slots, expected_pages, Heads(*heads))
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(q, expected, **tolerance)
    torch.testing.assert_close(pages.key_slots, expected_pages.key_slots, equal_nan=True, **tolerance)
    torch.testing.assert_close(pages.value_slots, expected_pages.value_slots, equal_nan=True, rtol=0, atol=0)


@each_dtype
@pytest.mark.parametrize("norm", ["none", "head", "projection"])
@pytest.mark.parametrize(("bias", "clip"), [(True, None), (False, 0.7), (True, 0.7)])
@pytest.mark.parametrize(("num_heads", "dim"), [((4, 2), 48), ((20, 20), 16)])
def test_what_comes_before_the_rotation(
    device: torch.device,
    dtype: torch.dtype,
    norm: str,
    bias: bool,
    clip: float | None,
    num_heads: tuple[int, int],
    dim: int,
) -> None:
    """Uses an epsilon that is not small beside the squares; 20 heads of each kind are more than a program's 16."""
    torch.manual_seed(dim)
    width = (num_heads[0] + 2 * num_heads[1]) * dim
    sizes = {"none": None, "head": (dim, dim), "projection": (num_heads[0] * dim, num_heads[1] * dim)}[norm]
    norms = (None, None) if sizes is None else tuple((1 + torch.randn(size)).to(device, dtype) for size in sizes)
    biases = torch.randn(width).to(device, dtype) if bias else None
    heads = Heads(*num_heads, biases, *norms, 0.1, clip)
    assert heads.kind_of_norm(dim) == norm
    qkv, slots = torch.randn(3, width).to(device, dtype), torch.tensor([5, -1, 0], device=device)
    rotation = rotation_at([0, 5, 900], dim, device)
    pages, expected_pages = (poisoned_pages(num_heads[1], dim, dtype, device) for _ in range(2))
    q = rotate_and_store(qkv, rotation, slots, pages, heads)
    expected = rotate_and_store_reference(qkv, rotation, slots, expected_pages, heads)
    places = 1 if norm == "none" else 3  # one before the weight of the norm, one behind it, and the last
    tolerance = {"rtol": places * TOLERANCE[dtype], "atol": places * TOLERANCE[dtype]}
    torch.testing.assert_close(q, expected, **tolerance)
    torch.testing.assert_close(pages.key_slots, expected_pages.key_slots, equal_nan=True, **tolerance)
    torch.testing.assert_close(pages.value_slots, expected_pages.value_slots, equal_nan=True, rtol=0, atol=0)


def test_a_clip_keeps_what_is_no_number(device: torch.device) -> None:
    qkv = torch.full((1, 8 * 16), 9.0, device=device)
    qkv[0, -1] = float("nan")
    pages = poisoned_pages(2, 16, torch.float32, device)
    slot = torch.tensor([0], device=device)
    rotate_and_store(qkv, rotation_at([0], 16, device), slot, pages, Heads(4, 2, clip=2.0))
    assert pages.values[0, 0, 1, -1].isnan()
    assert (pages.values[0, 0].flatten()[:-1] == 2).all()


def test_padding_writes_nothing(device: torch.device) -> None:
    pages = poisoned_pages(2, 16, torch.float32, device)
    slots = torch.full((3,), -1, device=device)
    q = rotate_and_store(
        torch.randn(3, 8 * 16, device=device), rotation_at([0, 0, 0], 16, device), slots, pages, Heads(4, 2)
    )
    assert q.isfinite().all()
    assert pages.key_slots.isnan().all()
    assert pages.value_slots.isnan().all()


def test_what_is_no_number_stays_with_its_head(device: torch.device) -> None:
    qkv = torch.randn(1, 8 * 16, device=device)
    clean, poisoned = (poisoned_pages(2, 16, torch.float32, device) for _ in range(2))
    rotation, slot = rotation_at([3], 16, device), torch.tensor([5], device=device)
    whole = rotate_and_store(qkv, rotation, slot, clean, Heads(4, 2))
    qkv[0, :16] = float("nan")
    q = rotate_and_store(qkv, rotation, slot, poisoned, Heads(4, 2))
    assert q[0, 0].isnan().all()
    assert q[0, 1:].equal(whole[0, 1:])
    assert poisoned.keys[1, 1].equal(clean.keys[1, 1])
    assert poisoned.values[1, 1].equal(clean.values[1, 1])


def test_a_token_is_the_same_in_any_company(device: torch.device) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(5, 8 * 32).to(device, torch.bfloat16)
    positions, slots = [9, 2, 77, 3, 4000], torch.tensor([2, 9, 20, 13, 0], device=device)
    pages, own = (poisoned_pages(2, 32, torch.bfloat16, device) for _ in range(2))
    together = rotate_and_store(qkv, rotation_at(positions, 32, device), slots, pages, Heads(4, 2))
    for t, position in enumerate(positions):
        rows = slice(t, t + 1)
        alone = rotate_and_store(qkv[rows], rotation_at([position], 32, device), slots[rows], own, Heads(4, 2))
        assert alone[0].equal(together[t])
    assert own.key_slots[slots].equal(pages.key_slots[slots])
    assert own.value_slots[slots].equal(pages.value_slots[slots])
