"""Tests what `--dtype` and `--quantization` mean on each device."""

from pathlib import Path

import pytest
import torch

from octavo.model.config import ModelError
from octavo.model.weights import precision
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8, INT8_FINE
from octavo.model.weights.precision import Precision, Wanted, choose_precision, quantizations
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8RowMajor
from tests.model.checkpoints import load
from tests.tiny import write_tiny_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def chosen(
    dtype: str, checkpoint: str | None, device: torch.device, quantization: str = "none", kernels: bool = True
) -> Precision:
    return choose_precision(Wanted(dtype, quantization), checkpoint, device, kernels)


def have(monkeypatch: pytest.MonkeyPatch, fbgemm: bool, native_bf16: bool = False) -> None:
    monkeypatch.setattr(precision, "fp16_works", lambda: fbgemm)
    monkeypatch.setattr(precision, "_native_bf16", lambda: native_bf16)


def test_auto_on_a_cpu_takes_what_the_cpu_computes_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Precision(torch.float32, Fp16Weight, Fp16Weight)
    for checkpoint in ("bfloat16", "float16", "float32", None):
        have(monkeypatch, fbgemm=True, native_bf16=True)
        assert chosen("auto", checkpoint, CPU) == packed
        have(monkeypatch, fbgemm=False, native_bf16=True)
        assert chosen("auto", checkpoint, CPU) == Precision.plain(torch.bfloat16)
        have(monkeypatch, fbgemm=False, native_bf16=False)
        assert chosen("auto", checkpoint, CPU) == Precision.plain(torch.float32)


def test_auto_on_cuda_keeps_the_checkpoints_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, fallback in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=supported: yes)
        assert chosen("auto", "float16", CUDA).linears == torch.float16
        assert chosen("auto", "bfloat16", CUDA).linears == fallback
        assert chosen("auto", "float32", CUDA) == Precision.plain(fallback)
        assert chosen("auto", None, CUDA) == Precision.plain(fallback)


def test_an_explicit_dtype_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, fbgemm=True)
    assert chosen("float32", "bfloat16", CPU) == Precision.plain(torch.float32)
    assert chosen("bfloat16", "float32", CPU) == Precision.plain(torch.bfloat16)
    assert chosen("float16", "float32", CPU) == Precision(torch.float32, Fp16Weight, Fp16Weight)
    assert chosen("float16", "float32", CUDA) == Precision.plain(torch.float16)


def test_what_is_impossible_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, fbgemm=False)
    with pytest.raises(ModelError, match="no float16 product; use --dtype"):
        chosen("float16", None, CPU)
    with pytest.raises(ModelError, match="quantization 'int3' is unknown; use auto, none, int8, int4"):
        chosen("auto", None, CPU, "int3")
    with pytest.raises(ModelError, match="'int8' is unknown; use auto, float32, bfloat16, float16"):
        chosen("int8", None, CPU)


HELD_INT8 = Precision(torch.float32, INT8, INT8_FINE)
HELD_INT4 = Precision(torch.float32, INT4, INT8_FINE, downs=INT8)


def test_auto_quantises_where_the_kernels_are_and_no_dtype_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, fbgemm=True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    packed = Precision(torch.float32, Fp16Weight, Fp16Weight)
    assert chosen("auto", "bfloat16", CPU, "auto", kernels=True) == HELD_INT8
    assert chosen("auto", "bfloat16", CPU, "auto", kernels=False) == packed
    assert chosen("auto", "bfloat16", CPU, "none", kernels=True) == packed
    assert chosen("float16", "bfloat16", CPU, "auto", kernels=True) == packed
    assert chosen("float32", "bfloat16", CPU, "auto", kernels=True) == Precision.plain(torch.float32)
    assert chosen("auto", "bfloat16", CUDA, "auto", kernels=True) == Precision.plain(torch.bfloat16)


def test_a_quantisation_that_was_asked_for_needs_no_kernels() -> None:
    for dtype in ("auto", "float32"):
        assert chosen(dtype, "bfloat16", CPU, "int8", kernels=False) == HELD_INT8
        assert chosen(dtype, "bfloat16", CPU, "int4", kernels=False) == HELD_INT4
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ModelError, match=f"leave out --dtype {dtype}, or use --quantization none"):
            chosen(dtype, "bfloat16", CPU, "int8")


def test_down_is_finer_in_half_of_the_layers() -> None:
    finer = [n for n in range(16) if HELD_INT4.down(n, 16) == INT8]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]
    assert all(HELD_INT8.down(n, 16) == INT8 for n in range(16))
    assert {Precision.plain(torch.bfloat16).down(n, 4) for n in range(4)} == {torch.bfloat16}


def test_what_it_says_of_itself() -> None:
    assert HELD_INT8.describe() == "int8"
    assert HELD_INT4.describe() == "int4 expert and int8 other"
    assert Precision.plain(torch.bfloat16).describe() == "bf16"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wanted", [("float32", "none"), ("bfloat16", "none"), ("auto", "int8"), ("auto", "int4")])
def test_the_size_of_the_weights_is_known_before_loading(tmp_path: Path, wanted: tuple[str, str], tied: bool) -> None:
    shape = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": tied}
    model = load(write_tiny_checkpoint(tmp_path, torch_dtype="bfloat16", **shape), *wanted)
    estimate = model.precision.weight_bytes(model.config)
    # Norms and routers are counted as the other matrices, and held as the activations; factors are not counted.
    assert 0.97 * model.weight_bytes < estimate <= model.weight_bytes


def test_on_cuda_the_experts_alone_are_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, kind in (("int8", Int8RowMajor), ("int4", Int4RowMajor), ("fp8", Fp8RowMajor)):
        assert chosen("auto", "bfloat16", CUDA, name) == Precision(torch.bfloat16, kind, torch.bfloat16)
        assert chosen("float16", "bfloat16", CUDA, name) == Precision(torch.float16, kind, torch.float16)
    assert quantizations(CUDA) == ("none", "fp8", "int8", "int4")


def test_fp8_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert quantizations(CUDA) == quantizations(CPU) == ("none", "int8", "int4")
    with pytest.raises(ModelError, match="capability 8.9 or more; use --quantization int8"):
        chosen("auto", "bfloat16", CUDA, "fp8")
    with pytest.raises(ModelError, match="on a CPU use --quantization int8"):
        chosen("auto", "bfloat16", CPU, "fp8")
