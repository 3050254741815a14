"""What `--dtype` means where."""

import pytest
import torch

from model import precision
from model.config import ModelError
from model.precision import Precision, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def have(monkeypatch: pytest.MonkeyPatch, fbgemm: bool, native_bf16: bool = False) -> None:
    monkeypatch.setattr(precision, "fp16_works", lambda: fbgemm)
    monkeypatch.setattr(precision, "_native_bf16", lambda: native_bf16)


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
