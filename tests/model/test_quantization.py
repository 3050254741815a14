"""What fits float16, what a packed weight keeps, and what `--dtype` means where."""

import pytest
import torch

from model import quantization
from model.config import ModelError
from model.quantization import Fp16Weight, Precision, choose_precision, fits_fp16, fp16_works

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_fbgemm = pytest.mark.skipif(not fp16_works(), reason="needs FBGEMM on x86")


def test_ordinary_weights_fit_float16() -> None:
    torch.manual_seed(0)
    assert fits_fp16(torch.randn(300, 40) * 0.02)
    assert fits_fp16(torch.zeros(4, 4))
    assert fits_fp16(torch.full((4, 4), 65504.0))


def test_large_and_tiny_weights_do_not() -> None:
    torch.manual_seed(0)
    large = torch.randn(30, 40)
    large[3, 3] = -65600
    assert not fits_fp16(large)
    assert not fits_fp16(torch.randn(30, 40) * 1e-6)
    # A few subnormal numbers among ordinary ones lose nothing that matters.
    assert fits_fp16(torch.cat((torch.randn(30, 40), torch.randn(1, 40) * 1e-7)))


def test_a_large_matrix_is_checked_to_its_end() -> None:
    wide = torch.ones(3, quantization.CHECKED)
    wide[2] = 1e-7
    assert fits_fp16(wide)
    wide[:] = 1e-7
    assert not fits_fp16(wide)


@needs_fbgemm
def test_packing_rounds_to_float16_and_nothing_else() -> None:
    torch.manual_seed(0)
    dense = torch.randn(33, 17)
    weight = Fp16Weight.pack(dense)
    assert torch.equal(weight.dense(), dense.half().float())
    assert (weight.shape, weight.nbytes) == ((33, 17), 2 * 48 * 512)


def have(monkeypatch: pytest.MonkeyPatch, fbgemm: bool, native_bf16: bool = False) -> None:
    monkeypatch.setattr(quantization, "fp16_works", lambda: fbgemm)
    monkeypatch.setattr(quantization, "_native_bf16", lambda: native_bf16)


def test_auto_on_a_cpu_takes_what_the_cpu_computes_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Precision(torch.float16, torch.float32, packed=True)
    for checkpoint in ("bfloat16", "float16", "float32", None):
        have(monkeypatch, fbgemm=True, native_bf16=True)
        assert choose_precision("auto", checkpoint, CPU) == packed
        have(monkeypatch, fbgemm=False, native_bf16=True)
        assert choose_precision("auto", checkpoint, CPU) == Precision(torch.bfloat16, torch.bfloat16)
        have(monkeypatch, fbgemm=False, native_bf16=False)
        assert choose_precision("auto", checkpoint, CPU) == Precision(torch.float32, torch.float32)


def test_auto_on_cuda_keeps_the_checkpoints_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, fallback in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=supported: yes)
        assert choose_precision("auto", "float16", CUDA).weights == torch.float16
        assert choose_precision("auto", "bfloat16", CUDA).weights == fallback
        assert choose_precision("auto", "float32", CUDA) == Precision(fallback, fallback)
        assert choose_precision("auto", None, CUDA) == Precision(fallback, fallback)


def test_an_explicit_dtype_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, fbgemm=True)
    assert choose_precision("float32", "bfloat16", CPU) == Precision(torch.float32, torch.float32)
    assert choose_precision("bfloat16", "float32", CPU) == Precision(torch.bfloat16, torch.bfloat16)
    assert choose_precision("float16", "float32", CPU) == Precision(torch.float16, torch.float32, packed=True)
    assert choose_precision("float16", "float32", CUDA) == Precision(torch.float16, torch.float16)


def test_what_is_impossible_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, fbgemm=False)
    with pytest.raises(ModelError, match="no float16 product; use --dtype"):
        choose_precision("float16", None, CPU)
    with pytest.raises(ModelError, match="'int8' is unknown; use auto, float32, bfloat16, float16"):
        choose_precision("int8", None, CPU)
