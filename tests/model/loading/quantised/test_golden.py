"""Tests matrices that the formats' own tools packed and unpacked, and reads what they write where they are installed.

golden.safetensors holds random numbers: what AutoGPTQ 0.7.1, AutoAWQ 0.2.9, bitsandbytes 0.50.2 and compressed-tensors
0.20.1 packed, and the first outputs of what each of them unpacked again. GPTQModel 7.7.0 unpacks in float16: beside
what it packed, in both versions, is what it was given in float32. Its zeros have a 0 and a 15 in one word.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo.model.loading.quantised.awq import Awq
from octavo.model.loading.quantised.bitsandbytes import EightBits, FourBits
from octavo.model.loading.quantised.compressed_tensors import Whole
from octavo.model.loading.quantised.fp8 import Fp8
from octavo.model.loading.quantised.gptq import Gptq
from octavo.model.loading.quantised.scheme import Scheme

GOLDEN = Path(__file__).parent / "golden.safetensors"
TOOLS = {
    "gptq4": (Gptq(4, 32, 1, False, False), (32, 64)),
    "gptq8": (Gptq(8, 64, 1, False, True), (32, 64)),
    "gptq4_act_order": (Gptq(4, 32, 1, True, False), (32, 64)),
    "gptqmodel_v1": (Gptq(4, 32, 1, True, False), (32, 64)),
    "awq": (Awq(32, True), (32, 64)),
    "bnb_nf4": (FourBits("nf4", True), (16, 128)),
    "bnb_fp4": (FourBits("fp4", False), (16, 128)),
    "bnb_int8": (EightBits(), (16, 64)),
    "ct_packed4": (Whole(4, "group", 32, False, True, False), (16, 64)),
    "ct_packed8": (Whole(8, "channel", 0, True, True, False), (16, 64)),
    "ct_int": (Whole(8, "channel", 0, True, False, False), (16, 64)),
    "ct_float": (Fp8((8, 32)), (16, 64)),
}


def read(tensors: dict[str, Tensor], module: str, scheme: Scheme, shape: tuple[int, int]) -> Tensor:
    specs = scheme.tensors(module, shape)
    assert {name for name in tensors if name.startswith(f"{module}.") and not name.endswith(".dense")} <= set(specs)
    assert {name for name, spec in specs.items() if not spec.optional} <= set(tensors)
    return scheme.read(tensors.__getitem__, module, shape).dense()


@pytest.mark.parametrize("name", list(TOOLS))
def test_what_other_tools_packed(name: str) -> None:
    tensors = load_file(GOLDEN)
    dense = read(tensors, name, *TOOLS[name])
    expected = tensors[f"{name}.dense"]
    torch.testing.assert_close(dense[: len(expected)], expected, rtol=1e-6, atol=1e-9)


def test_both_versions_of_gptq_are_the_same_matrix() -> None:
    tensors = load_file(GOLDEN)
    version2 = {name: tensor for name, tensor in tensors.items() if name.startswith("gptqmodel_v1.")}
    version2["gptqmodel_v1.qzeros"] = tensors["gptqmodel_v2.qzeros"]
    dense = read(version2, "gptqmodel_v1", Gptq(4, 32, 2, True, False), (32, 64))
    assert torch.equal(dense, read(tensors, "gptqmodel_v1", *TOOLS["gptqmodel_v1"]))
    assert not torch.equal(dense, read(version2, "gptqmodel_v1", *TOOLS["gptqmodel_v1"]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_reads_the_same_of_what_it_wrote(bits: int, group: int, symmetric: bool) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    torch.manual_seed(bits + group)
    out, inputs, groups = 24, 96, 96 // group if group else 1
    strategy: dict[str, Any] = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    )
    low = -(2 ** (bits - 1))
    zeros = torch.randint(low, -low, (out, groups), dtype=torch.int8)
    state = {"weight": torch.randn(out, inputs), "weight_scale": torch.rand(out, groups).bfloat16() / 8 + 0.01}
    written = PackedQuantizationCompressor.compress(
        state | {"weight_zero_point": torch.zeros_like(zeros) if symmetric else zeros}, scheme
    )
    tensors = {f"m.{name}": tensor for name, tensor in written.items()}
    ours = read(
        tensors, "m", Whole(bits, "group" if group else "channel", group, symmetric, True, False), (out, inputs)
    )
    theirs = PackedQuantizationCompressor.decompress(written, scheme)["weight"]
    assert torch.equal(ours.to(theirs.dtype), theirs)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [64, 128])
def test_bitsandbytes_reads_the_same_of_what_it_wrote(kind: str, block: int, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(block)
    dense = torch.randn(48, 352)  # The last block of weights is cut off.
    packed, state = functional.quantize_4bit(dense, quant_type=kind, compress_statistics=nested, blocksize=block)
    tensors = {f"m.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    ours = read(tensors | {"m.weight": packed}, "m", FourBits(kind, nested), (48, 352))
    assert torch.equal(ours, functional.dequantize_4bit(packed, state))
