"""Tests that each format gives the integers and scales that were packed, bit for bit, and that mistakes would be seen.

The matrix has as many groups as outputs, so that transposed scales would have the right shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.loading.quantised import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4, packed
from octavo.model.loading.quantised.scheme import Get, Scheme
from octavo.model.loading.quantised.stored import Affine, Dense, Floats, Stored, Table
from tests.model.loading.quantised import packing
from tests.model.loading.quantised.packing import Tensors

OUT, IN, GROUP = 16, 512, 32
SHAPE, COUNT = (OUT, IN), IN // GROUP
MODULE = "model.layers.0.mlp.experts.3.gate_proj"
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
STRATEGY = {GROUP: "group", 0: "channel"}


@dataclass(frozen=True)
class Numbers:
    """Numbers are what is packed."""

    codes: Tensor  # [out, in] uint8
    zeros: Tensor  # [out, groups] uint8
    scales: Tensor  # [out, groups]


def numbers(bits: int = 4, groups: int = COUNT, dtype: torch.dtype = torch.float16) -> Numbers:
    """Returns random numbers; all codes and zeros occur, the lowest and the highest zero side by side."""
    torch.manual_seed(bits + groups)
    codes = torch.randint(0, 2**bits, SHAPE, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (OUT, groups), dtype=torch.uint8)
    zeros[:4, 0] = torch.tensor([0, 2**bits - 1, 0, 0])
    return Numbers(codes, zeros, (0.5 + torch.rand(OUT, groups)).to(dtype) / 64)


def getter(tensors: Tensors, separator: str = ".") -> Get:
    return {f"{MODULE}{separator}{name}": tensor for name, tensor in tensors.items()}.__getitem__


def check_tensors(scheme: Scheme, tensors: Tensors, shape: tuple[int, ...] = SHAPE, separator: str = ".") -> None:
    """Checks that the scheme asks for these tensors, and for no others."""
    specs = scheme.tensors(MODULE, shape)
    names = {torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.int8: "I8", torch.float16: "F16"}
    names |= {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    for name, tensor in tensors.items():
        spec = specs.pop(f"{MODULE}{separator}{name}")
        assert spec.allows(names[tensor.dtype], tuple(tensor.shape)), f"{name}: {spec.describe()}"
        assert not spec.allows("F64", tuple(tensor.shape))
        assert not spec.allows(names[tensor.dtype], (*tensor.shape, 1, 1, 1))
    assert all(spec.optional for spec in specs.values())


def check_affine(stored: Stored, expected: Numbers, symmetric: bool = False) -> None:
    assert isinstance(stored, Affine)
    assert stored.codes.dtype == torch.uint8 and torch.equal(stored.codes, expected.codes)
    assert stored.scales.dtype == expected.scales.dtype and torch.equal(stored.scales, expected.scales)
    if symmetric:
        assert stored.zeros is None
        return
    assert stored.zeros is not None and stored.zeros.dtype == torch.uint8
    assert torch.equal(stored.zeros, expected.zeros)


def dense_of(expected: Numbers) -> Tensor:
    """Returns (code - zero) * scale, weight by weight."""
    groups = expected.scales.shape[1]
    dense = torch.empty(SHAPE)
    for o in range(OUT):
        for n in range(IN):
            g = n * groups // IN
            dense[o, n] = (int(expected.codes[o, n]) - int(expected.zeros[o, g])) * float(expected.scales[o, g])
    return dense


def check_gptq(bits: int, version: int, group: int) -> None:
    expected = numbers(bits, IN // group if group else 1)
    tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, bits, version)
    scheme = gptq.Gptq(bits, group, version, act_order=False, symmetric=False)
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    check_affine(stored, expected)
    assert stored.order is None and (stored.bits, stored.group) == (bits, group)
    torch.testing.assert_close(stored.dense(), dense_of(expected), rtol=1e-6, atol=0)


def check_awq() -> None:
    expected = numbers()
    tensors = packing.awq(expected.codes, expected.zeros, expected.scales)
    scheme = awq.Awq(GROUP, zero_point=True)
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    check_affine(stored, expected)
    torch.testing.assert_close(stored.dense(), dense_of(expected), rtol=1e-6, atol=0)


def check_pack_quantized(bits: int, group: int, symmetric: bool) -> None:
    expected = numbers(bits, IN // group if group else 1, torch.bfloat16)
    if symmetric:
        expected.zeros.fill_(2 ** (bits - 1))
    tensors = packing.pack_quantized(expected.codes, None if symmetric else expected.zeros, expected.scales, bits)
    scheme = compressed_tensors.Whole(bits, STRATEGY[group], group, symmetric, True, False)
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    check_affine(stored, expected, symmetric)
    torch.testing.assert_close(stored.dense(), dense_of(expected), rtol=1e-6, atol=0)


def check_int_quantized(symmetric: bool) -> None:
    expected = numbers(8, 1, torch.float32)
    tensors = {"weight": (expected.codes.short() - 128).to(torch.int8), "weight_scale": expected.scales}
    if not symmetric:
        tensors["weight_zero_point"] = (expected.zeros.short() - 128).to(torch.int8)
    scheme = compressed_tensors.Whole(8, "channel", 0, symmetric, False, False)
    check_tensors(scheme, tensors)
    check_affine(scheme.read(getter(tensors), MODULE, SHAPE), expected, symmetric)


def check_fp8_blocks() -> None:
    block = (3, 128)  # The last block of the outputs is cut off.
    values = torch.randn(SHAPE).to(torch.float8_e4m3fn)
    scales = 0.5 + torch.rand(math.ceil(OUT / block[0]), IN // block[1])
    tensors = {"weight": values, "weight_scale_inv": scales}
    scheme = fp8.Fp8(block, "weight_scale_inv")
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    assert isinstance(stored, Floats) and torch.equal(stored.values.view(torch.uint8), values.view(torch.uint8))
    dense = stored.dense()
    for o, n in ((0, 0), (2, 127), (3, 128), (7, 300), (15, 511)):
        assert dense[o, n] == values[o, n].float() * scales[o // 3, n // 128]


def check_four_bits(nested: bool) -> None:
    codes, block = numbers().codes, 64
    meaning = torch.linspace(-1, 1, 16)
    absmax = 0.5 + torch.rand(OUT * IN // block)
    tensors = packing.four_bits(codes, absmax, meaning, block, "nf4")
    if nested:
        numbers_of, outer, table = torch.randint(0, 256, absmax.shape), 1 + torch.rand(3), torch.rand(256)
        absmax = torch.stack([table[each] * outer[n // 50] + 0.25 for n, each in enumerate(numbers_of.tolist())])
        tensors["weight.absmax"] = numbers_of.to(torch.uint8)
        tensors = packing.nested(tensors, "nf4", outer, table, 50, 0.25)
    scheme = bitsandbytes.FourBits("nf4", nested)
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    assert isinstance(stored, Dense)
    for o, n in ((0, 0), (0, 1), (0, 64), (1, 5), (9, 300), (15, 510), (15, 511)):
        factor = absmax[(o * IN + n) // block]
        torch.testing.assert_close(stored.dense()[o, n], meaning[int(codes[o, n])] * factor)


def check_mxfp4() -> None:
    codes, scales = numbers().codes, torch.randint(100, 140, (OUT, IN // 32), dtype=torch.uint8)
    tensors = packing.mxfp4(codes, scales)
    scheme = mxfp4.Mxfp4()
    stacked = {name: tensor[None] for name, tensor in tensors.items()}
    check_tensors(scheme, stacked, (1, *SHAPE), "_")
    stored = scheme.read(getter(tensors, "_"), MODULE, SHAPE)
    assert isinstance(stored, Table) and torch.equal(stored.codes, codes) and torch.equal(stored.scales, scales)
    dense = stored.dense()
    for o, n in ((0, 0), (0, 1), (3, 40), (9, 300), (15, 511)):
        code, exponent = int(codes[o, n]), int(scales[o, n // 32]) - 127
        assert dense[o, n] == (-1 if code >= 8 else 1) * E2M1[code % 8] * 2.0**exponent


@pytest.mark.parametrize("group", [GROUP, 128, 0])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(bits: int, version: int, group: int) -> None:
    check_gptq(bits, version, group)


def test_awq() -> None:
    check_awq()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [GROUP, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_pack_quantized(bits: int, group: int, symmetric: bool) -> None:
    check_pack_quantized(bits, group, symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int_quantized(symmetric: bool) -> None:
    check_int_quantized(symmetric)


def test_fp8_in_blocks() -> None:
    check_fp8_blocks()


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_of_bitsandbytes(nested: bool) -> None:
    check_four_bits(nested)


def test_mxfp4() -> None:
    check_mxfp4()


def swapped_halves(words: Tensor, bits: int) -> Tensor:
    codes = words.contiguous().view(torch.uint8)
    return packed.high_half_first(codes) if bits == 4 else codes


def one_by_one(words: Tensor, bits: int) -> Tensor:
    """Adds one to each zero for itself, so that nothing is carried from one to the next."""
    return (packed.unpacked_right(words - gptq.ADDED[bits], bits) + 1) & (2**bits - 1)


def of_another_output(zeros: Tensor, bits: int) -> Tensor | None:
    return zeros.roll(1, 0)


def transposed(scales: Tensor, name: str) -> Tensor:
    return scales.T.contiguous()


GPTQ4: Callable[[], None] = lambda: check_gptq(4, 1, GROUP)  # noqa: E731
GPTQ8: Callable[[], None] = lambda: check_gptq(8, 1, GROUP)  # noqa: E731
GPTQ_V2: Callable[[], None] = lambda: check_gptq(4, 2, GROUP)  # noqa: E731
PACKED4: Callable[[], None] = lambda: check_pack_quantized(4, GROUP, False)  # noqa: E731
FLIPPED = tuple(-value for value in mxfp4.VALUES)


@pytest.mark.parametrize(
    ("check", "target", "name", "mistake"),
    [
        pytest.param(GPTQ4, gptq, "ADDED", {4: 0, 8: 0}, id="gptq: zeros that are off by one"),
        pytest.param(GPTQ4, gptq, "ADDED", {4: 0x01010101, 8: 0}, id="gptq: one is added to every second zero"),
        pytest.param(GPTQ4, gptq, "ADDED", {4: -0x11111111, 8: 0}, id="gptq: one is taken away"),
        pytest.param(GPTQ8, gptq, "ADDED", {4: 0, 8: 0}, id="gptq, 8 bits: zeros that are off by one"),
        pytest.param(GPTQ8, gptq, "ADDED", {4: 0, 8: 0x11111111}, id="gptq, 8 bits: what 4 bits need is added"),
        pytest.param(GPTQ4, packed, "unpacked_right", swapped_halves, id="gptq: swapped halves"),
        pytest.param(GPTQ4, gptq, "unpacked_right", swapped_halves, id="gptq: swapped halves of zeros"),
        pytest.param(GPTQ4, gptq, "unpacked_right", one_by_one, id="gptq: no carry between zeros"),
        pytest.param(GPTQ4, gptq, "checked_scales", transposed, id="gptq: transposed scales"),
        pytest.param(GPTQ_V2, gptq, "unless_even", of_another_output, id="gptq: zeros of another output"),
        pytest.param(check_awq, awq, "PLACES", list(range(8)), id="awq: outputs as they come"),
        pytest.param(check_awq, awq, "PLACES", [0, 2, 4, 6, 1, 3, 5, 7], id="awq: the inverse order"),
        pytest.param(check_awq, awq, "PLACES", [1, 5, 0, 4, 3, 7, 2, 6], id="awq: swapped halves"),
        pytest.param(check_awq, awq, "checked_scales", transposed, id="awq: transposed scales"),
        pytest.param(PACKED4, packed, "unpacked_right", swapped_halves, id="compressed-tensors: swapped halves"),
        pytest.param(PACKED4, compressed_tensors, "checked_scales", transposed, id="compressed-tensors: transposed"),
        pytest.param(
            lambda: check_int_quantized(False),
            compressed_tensors,
            "_unsigned",
            lambda values, middle: values.view(torch.uint8),
            id="compressed-tensors: signed codes",
        ),
        pytest.param(
            lambda: check_four_bits(False),
            bitsandbytes,
            "high_half_first",
            packed.low_half_first,
            id="bitsandbytes: low half first",
        ),
        pytest.param(check_mxfp4, mxfp4, "low_half_first", packed.high_half_first, id="mxfp4: high half first"),
        pytest.param(check_mxfp4, mxfp4, "VALUES", FLIPPED, id="mxfp4: flipped signs"),
        pytest.param(check_mxfp4, mxfp4, "FACTOR", 1.0, id="mxfp4: values that are doubled"),
        pytest.param(
            check_fp8_blocks, fp8, "of_rows", lambda scales, rows, out: scales.repeat(rows, 1)[:out], id="fp8: rows"
        ),
    ],
)
def test_mistakes_are_seen(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[], None], target: object, name: str, mistake: object
) -> None:
    check()
    monkeypatch.setattr(target, name, mistake)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_gptq_has_no_zeros(bits: int) -> None:
    expected = numbers(bits)
    expected.zeros.fill_(2 ** (bits - 1))
    tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, bits)
    assert int(tensors["qzeros"][0, 0]) & 15 == (7 if bits == 4 else 15)  # as AutoGPTQ writes them
    stored = gptq.Gptq(bits, GROUP, 1, False, True).read(getter(tensors), MODULE, SHAPE)
    check_affine(stored, expected, symmetric=True)
    torch.testing.assert_close(stored.dense(), dense_of(expected), rtol=1e-6, atol=0)
    expected.zeros[3, 3] += 1
    tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, bits)
    with pytest.raises(ModelError, match=r"qzeros are not all the middle, though sym is true"):
        gptq.Gptq(bits, GROUP, 1, False, True).read(getter(tensors), MODULE, SHAPE)
    check_affine(gptq.Gptq(bits, GROUP, 1, False, None).read(getter(tensors), MODULE, SHAPE), expected)


@pytest.mark.parametrize("format_", ["gptq", "compressed-tensors"])
def test_act_order_puts_groups_side_by_side(format_: str) -> None:
    expected = numbers()
    index = (torch.arange(IN) // GROUP)[torch.randperm(IN)]
    if format_ == "gptq":
        tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, 4) | {"g_idx": index.int()}
        scheme: Scheme = gptq.Gptq(4, GROUP, 1, True, False)
    else:
        tensors = packing.pack_quantized(expected.codes, expected.zeros, expected.scales, 4)
        tensors |= {"weight_g_idx": index.int()}
        scheme = compressed_tensors.Whole(4, "group", GROUP, False, True, True)
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    assert isinstance(stored, Affine) and stored.order is not None and stored.order.dtype == torch.int32
    order = stored.order.long()
    assert torch.equal(index[order], torch.arange(IN) // GROUP)
    assert all(order[n] < order[n + 1] for n in range(IN - 1) if index[order[n]] == index[order[n + 1]])
    assert torch.equal(stored.codes, expected.codes[:, order])
    dense = stored.dense()
    for o, n in ((0, 0), (3, 17), (9, 300), (15, 511)):
        g = int(index[n])
        code, zero = int(expected.codes[o, n]), int(expected.zeros[o, g])
        torch.testing.assert_close(dense[o, n], (code - zero) * expected.scales[o, g].float())


def test_groups_that_are_not_whole_are_refused() -> None:
    expected = numbers()
    tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, 4)
    index = torch.arange(IN).int() // GROUP
    scheme = gptq.Gptq(4, GROUP, 1, True, False)
    assert scheme.read(getter(tensors | {"g_idx": index}), MODULE, SHAPE).order is None
    for broken in (index.index_fill(0, torch.tensor([0]), 1), index - 1, index + 1):
        with pytest.raises(ModelError, match=r"g_idx do not have 32 inputs each"):
            scheme.read(getter(tensors | {"g_idx": broken}), MODULE, SHAPE)
    with pytest.raises(ModelError, match=r"g_idx is out of order, though desc_act is false"):
        gptq.Gptq(4, GROUP, 1, False, False).read(getter(tensors | {"g_idx": index.flip(0)}), MODULE, SHAPE)
    # One scale for a whole output has no order.
    expected = numbers(4, 1)
    tensors = packing.gptq(expected.codes, expected.zeros, expected.scales, 4) | {"g_idx": index.flip(0)}
    assert gptq.Gptq(4, 0, 1, True, False).read(getter(tensors), MODULE, SHAPE).order is None


def test_awq_without_zero_points() -> None:
    expected = numbers()
    expected.zeros.fill_(8)
    tensors = packing.awq(expected.codes, expected.zeros, expected.scales)
    scheme = awq.Awq(GROUP, zero_point=False)
    check_affine(scheme.read(getter(tensors), MODULE, SHAPE), expected, symmetric=True)
    del tensors["qzeros"]
    check_tensors(scheme, tensors)
    check_affine(scheme.read(getter(tensors), MODULE, SHAPE), expected, symmetric=True)


def test_zero_points_of_older_compressed_tensors_are_not_packed() -> None:
    expected = numbers()
    tensors = packing.pack_quantized(expected.codes, None, expected.scales, 4)
    tensors["weight_zero_point"] = expected.zeros.to(torch.int8) - 8
    scheme = compressed_tensors.Whole(4, "group", GROUP, False, True, False)
    check_tensors(scheme, tensors)
    check_affine(scheme.read(getter(tensors), MODULE, SHAPE), expected)
    symmetric = compressed_tensors.Whole(4, "group", GROUP, True, True, False)
    with pytest.raises(ModelError, match="weight_zero_point is not 0, though symmetric is true"):
        symmetric.read(getter(tensors), MODULE, SHAPE)
    tensors["weight_zero_point"].zero_()
    check_affine(symmetric.read(getter(tensors), MODULE, SHAPE), expected, symmetric=True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_a_tensor(shape: tuple[int, ...]) -> None:
    values = numbers(8).codes.view(torch.int8)
    scale = torch.full(shape, 0.25)
    tensors = {"weight": values, "weight_scale": scale}
    whole = compressed_tensors.Whole(8, "tensor", 0, True, False, False)
    check_tensors(whole, tensors)
    torch.testing.assert_close(whole.read(getter(tensors), MODULE, SHAPE).dense(), values.float() * 0.25)
    floats = torch.randn(SHAPE).to(torch.float8_e4m3fn)
    tensors = {"weight": floats, "weight_scale": scale}
    check_tensors(fp8.Fp8(None), tensors)
    assert torch.equal(fp8.Fp8(None).read(getter(tensors), MODULE, SHAPE).dense(), floats.float() * 0.25)


@pytest.mark.parametrize("shape", [(OUT,), (OUT, 1)])
def test_a_scale_for_each_output_in_fp8(shape: tuple[int, ...]) -> None:
    floats, scales = torch.randn(SHAPE).to(torch.float8_e4m3fn), torch.rand(shape, dtype=torch.bfloat16)
    tensors = {"weight": floats, "weight_scale": scales}
    check_tensors(fp8.Fp8(None), tensors)
    stored = fp8.Fp8(None).read(getter(tensors), MODULE, SHAPE)
    assert torch.equal(stored.dense(), floats.float() * scales.float().reshape(OUT, 1))


def test_fp8_of_all_experts_in_one_tensor() -> None:
    floats, scales = torch.randn(SHAPE).to(torch.float8_e4m3fn), torch.rand(1, 4)
    scheme = fp8.Fp8((128, 128), "weight_scale_inv")
    assert set(scheme.tensors(MODULE, (8, *SHAPE))) >= {MODULE, f"{MODULE}_scale_inv"}
    get = {MODULE: floats, f"{MODULE}_scale_inv": scales}.__getitem__
    expected = floats.float() * scales.repeat_interleave(128, dim=1)
    assert torch.equal(scheme.read(get, MODULE, SHAPE).dense(), expected)


def test_int8_of_bitsandbytes() -> None:
    values, scales = numbers(8).codes.view(torch.int8), 1 + torch.rand(OUT)
    tensors = {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    scheme = bitsandbytes.EightBits()
    check_tensors(scheme, tensors)
    stored = scheme.read(getter(tensors), MODULE, SHAPE)
    torch.testing.assert_close(stored.dense(), values.float() * scales[:, None] / 127)
    tensors["weight_format"] += 1
    with pytest.raises(ModelError, match="weight_format is not 0"):
        scheme.read(getter(tensors), MODULE, SHAPE)


def test_rows_are_chosen_in_any_order() -> None:
    expected = numbers()
    affine = Affine(expected.codes, 4, GROUP, expected.scales, expected.zeros, torch.randperm(IN).int())
    floats = Floats(torch.randn(SHAPE).to(torch.float8_e4m3fn), 128, torch.rand(OUT, 4))
    table = Table(expected.codes, 32, torch.randint(100, 130, (OUT, COUNT), dtype=torch.uint8), mxfp4.VALUES, 0.5)
    chosen = torch.randperm(OUT)[:5]
    for stored in (affine, floats, table, Dense(torch.randn(SHAPE))):
        assert stored.shape == SHAPE
        assert torch.equal(stored.rows(chosen).dense(), stored.dense()[chosen])
        assert torch.equal(stored.rows(slice(1, None, 2)).dense(), stored.dense()[1::2])


@pytest.mark.parametrize("broken", [math.inf, math.nan, -math.inf, -(2.0**91), 3e38])
def test_scales_that_are_no_numbers_are_refused(broken: float) -> None:
    expected = numbers(dtype=torch.float32)
    expected.scales[3, 4] = broken
    tensors = packing.awq(expected.codes, expected.zeros, expected.scales)
    with pytest.raises(ModelError, match=r"gate_proj\.scales hold infinities or NaNs"):
        awq.Awq(GROUP, True).read(getter(tensors), MODULE, SHAPE)
    tensors = {"weight": torch.zeros(SHAPE).to(torch.float8_e4m3fn), "weight_scale": torch.tensor(broken)}
    with pytest.raises(ModelError, match=r"weight_scale hold infinities or NaNs"):
        fp8.Fp8(None).read(getter(tensors), MODULE, SHAPE)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_weights_and_exponents_that_are_no_numbers_are_refused(code: int) -> None:
    floats = torch.zeros(SHAPE, dtype=torch.uint8)
    floats[3, 4] = code
    tensors = {"weight": floats.view(torch.float8_e4m3fn), "weight_scale": torch.tensor(1.0)}
    with pytest.raises(ModelError, match="gate_proj hold NaNs"):
        fp8.Fp8(None).read(getter(tensors), MODULE, SHAPE)
    for exponent in (255, 218):
        tensors = packing.mxfp4(numbers().codes, torch.full((OUT, IN // 32), exponent, dtype=torch.uint8))
        with pytest.raises(ModelError, match="gate_proj_scales hold NaNs"):
            mxfp4.Mxfp4().read(getter(tensors, "_"), MODULE, SHAPE)


def test_what_does_not_fit_the_format_is_refused() -> None:
    with pytest.raises(ModelError, match="has 12 outputs, which is not a multiple of 8"):
        awq.Awq(GROUP, True).tensors(MODULE, (12, 64))
    with pytest.raises(ModelError, match="has 36 inputs, which is not a multiple of 8"):
        gptq.Gptq(4, 0, 1, False, None).tensors(MODULE, (16, 36))
    with pytest.raises(ModelError, match="has 48 inputs, and MXFP4 has blocks of 32"):
        mxfp4.Mxfp4().tensors(MODULE, (16, 48))
    expected = numbers()
    tensors = packing.pack_quantized(expected.codes, None, expected.scales, 4) | {"weight_shape": torch.tensor([1, 2])}
    with pytest.raises(ModelError, match=r"weight_shape is \[1, 2\], not \[16, 512\]"):
        compressed_tensors.Whole(4, "group", GROUP, True, True, False).read(getter(tensors), MODULE, SHAPE)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"shape": [16, 512]}',
        b'{"shape": [8, 512], "blocksize": 64}',
        b'{"shape": 1}',
        b'{"shape": [16, 512], "blocksize": Infinity}',
        b'{"shape": [16, 512], "blocksize": 1e300}',
        b'{"shape": [16, 512], "blocksize": -64}',
        b'{"shape": [16, 512], "blocksize": 63}',
        b'{"shape": [16, 512], "blocksize": 99999999999999}',  # It would be repeated in memory.
    ],
)
def test_broken_states_of_bitsandbytes_are_refused(state: bytes) -> None:
    tensors = packing.four_bits(numbers().codes, torch.ones(OUT * IN // 64), torch.ones(16), 64, "nf4")
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
    with pytest.raises(ModelError, match=r"quant_state|is not a matrix"):
        bitsandbytes.FourBits("nf4", False).read(getter(tensors), MODULE, SHAPE)


@pytest.mark.parametrize(("block", "offset"), [(0, 0.0), (10**12, 0.0), (50, math.nan), (50, math.inf)])
def test_broken_states_of_nested_factors_are_refused(block: int, offset: float) -> None:
    plain = packing.four_bits(numbers().codes, torch.ones(OUT * IN // 64, dtype=torch.uint8), torch.ones(16), 64, "nf4")
    tensors = packing.nested(plain, "nf4", torch.ones(3), torch.ones(256), block, offset)
    with pytest.raises(ModelError, match="quant_state"):
        bitsandbytes.FourBits("nf4", True).read(getter(tensors), MODULE, SHAPE)


@pytest.mark.parametrize("shape", [(OUT, COUNT), (OUT // 8,), (1,)])
def test_zero_points_in_words_are_packed(shape: tuple[int, ...]) -> None:
    """Whole numbers in 32 bits, one for each group, would be taken for eight zeros each."""
    tensors = packing.pack_quantized(numbers().codes, None, numbers().scales, 4)
    scheme = compressed_tensors.Whole(4, "group", GROUP, False, True, False)
    for dtype in (torch.int32, torch.int8):
        zeros = torch.zeros(shape if dtype == torch.int32 else (OUT // 8, COUNT), dtype=dtype)
        with pytest.raises(ModelError, match="weight_zero_point has the shape"):
            scheme.read(getter(tensors | {"weight_zero_point": zeros}), MODULE, SHAPE)
