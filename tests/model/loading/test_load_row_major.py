"""Tests loading for a GPU, which quantises experts as they arrive. A CPU, as here, holds them just as well."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.stack import Stack
from tests.model.checkpoints import CPU, Tensors, change, shard, stack_experts
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

PROMPT = list(range(5, 25))
DOWN = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
each_kind = pytest.mark.parametrize("kind", [Int8RowMajor, Int4RowMajor, Fp8RowMajor])


def load(directory: Path, kind: torch.dtype | type[RowMajorWeight], dtype: torch.dtype = torch.float32) -> Decoder:
    config = ModelConfig.from_pretrained(directory)
    return load_model(directory, config, select_backend(config, CPU), Precision(dtype, kind, dtype))


def logits(model: Decoder) -> Tensor:
    return Pages(model, sequences=1, length=len(PROMPT)).prompt(PROMPT)


@each_kind
def test_every_naming_gives_the_same_weights(tmp_path: Path, kind: type[RowMajorWeight]) -> None:
    write_tiny_checkpoint(tmp_path)
    expected = load(tmp_path, kind)
    for rewrite in (lambda: change(tmp_path, stack_experts), lambda: shard(tmp_path)):
        rewrite()
        again = load(tmp_path, kind)
        for one, other in zip(expected.layers, again.layers, strict=True):
            for side in ("gate_up", "down"):
                pairs = zip(getattr(one.moe.experts, side), getattr(other.moe.experts, side), strict=True)
                assert all(torch.equal(before.dense(), after.dense()) for before, after in pairs)


@each_kind
def test_experts_are_one_stack_and_the_rest_is_plain(tmp_path: Path, kind: type[RowMajorWeight]) -> None:
    model = load(write_tiny_checkpoint(tmp_path), kind)
    for layer in model.layers:
        experts = layer.moe.experts
        assert Stack.of(experts.gate_up).format == Stack.of(experts.down).format == kind.held_as
        assert isinstance(layer.attention.qkv, Tensor) and isinstance(layer.attention.o, Tensor)
    assert isinstance(model.head, Tensor)
    plain = load(tmp_path, torch.float32)
    stored = load_file(tmp_path / "model.safetensors")[DOWN]
    held = model.layers[0].moe.experts.down[1]
    assert isinstance(held, RowMajorWeight)
    assert (held.dense() - stored).abs().max() < 0.2 * stored.abs().max()
    assert (logits(model) - logits(plain)).square().mean() < 0.1 * logits(plain).square().mean()


def test_a_tied_head_stays_the_embedding_beside_quantised_experts(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path, tie_word_embeddings=True), Int8RowMajor)
    assert model.head is model.embedding.table


def test_a_dense_model_is_one_expert(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path, model_type="mistral"), Int8RowMajor)
    assert all(Stack.of(layer.moe.experts.down).quants.shape[0] == 1 for layer in model.layers)


def test_experts_beyond_the_scales_stay_plain_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_checkpoint(tmp_path)

    def enlarge(tensors: Tensors) -> None:
        tensors[DOWN] *= 1e6

    change(tmp_path, enlarge)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, Int4RowMajor)
    assert Stack.of(model.layers[0].moe.experts.down).kind == "fp32"
    assert Stack.of(model.layers[1].moe.experts.down).kind == "int4"
    assert caplog.messages == ["4 matrices are beyond the range of int4 expert and fp32 other and stay plain tensors"]


@each_kind
def test_what_is_no_number_is_refused(tmp_path: Path, kind: type[RowMajorWeight]) -> None:
    write_tiny_checkpoint(tmp_path)

    def spoil(tensors: Tensors) -> None:
        tensors[DOWN][3, 5] = torch.nan

    change(tmp_path, spoil)
    with pytest.raises(ModelError, match=f"{DOWN} holds infinities or NaNs"):
        load(tmp_path, kind)


@each_kind
def test_the_size_is_known_before_loading(tmp_path: Path, kind: type[RowMajorWeight]) -> None:
    model = load(write_tiny_checkpoint(tmp_path, hidden_size=128, intermediate_size=256), kind, torch.bfloat16)
    assert model.weight_bytes == pytest.approx(model.precision.weight_bytes(model.config), rel=0.05)
