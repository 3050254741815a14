"""Tests what the flags mean for a checkpoint that is quantised already, and how much memory it is said to take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model.config import ModelConfig, ModelError
from octavo.model.loading.choice import precision_for, weight_bytes
from octavo.model.loading.forms import variant_of
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8
from octavo.model.weights.precision import Precision, Wanted
from tests.model.marks import needs_fbgemm
from tests.tiny import write_tiny_checkpoint

CPU = torch.device("cpu")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def chosen(directory: Path, described: dict[str, Any], dtype: str, quantization: str) -> Precision:
    """Returns the precision of a checkpoint that config.json describes so; its weights are not read."""
    write_tiny_checkpoint(directory, quantization_config=described)
    config = ModelConfig.from_pretrained(directory)
    return precision_for(directory, Wanted(dtype, quantization), config, CPU, kernels=True)


@pytest.mark.parametrize("described", [GPTQ, FP8, NF4])
def test_without_a_flag_the_checkpoints_own_numbers_are_kept(tmp_path: Path, described: dict[str, Any]) -> None:
    precision = chosen(tmp_path, described, "auto", "auto")
    assert (precision.keeps, precision.experts, variant_of(precision)) == (True, INT8, "kept-int8")
    plain = chosen(tmp_path, described, "float32", "auto")
    assert (plain.keeps, plain.experts, variant_of(plain)) == (True, torch.float32, "kept-float32")


@needs_fbgemm
def test_none_makes_plain_weights(tmp_path: Path) -> None:
    precision = chosen(tmp_path, GPTQ, "auto", "none")
    assert (precision.keeps, precision.experts) == (False, Fp16Weight)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_is_held_as_it_is_cannot_be_quantised_again(tmp_path: Path, quantization: str) -> None:
    with pytest.raises(ModelError, match=f"--quantization {quantization} would round its weights again"):
        chosen(tmp_path, GPTQ, "auto", quantization)


@pytest.mark.parametrize("described", [FP8, NF4])
def test_what_is_decoded_can_be_quantised_as_asked(tmp_path: Path, described: dict[str, Any]) -> None:
    precision = chosen(tmp_path, described, "auto", "int4")
    assert (precision.keeps, precision.experts) == (False, INT4)


def test_kept_weights_take_what_the_files_take(tmp_path: Path) -> None:
    precision = chosen(tmp_path, GPTQ, "auto", "auto")
    config = ModelConfig.from_pretrained(tmp_path)
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    size = (tmp_path / "model.safetensors").stat().st_size - 8 - header
    assert weight_bytes(tmp_path, config, precision) == size
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": FP8})
    )
    assert weight_bytes(tmp_path, config, precision) == precision.weight_bytes(config)
