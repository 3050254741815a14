"""Tests that the tables of tensor names are complete for every naming, and as large as the model."""

from math import prod
from pathlib import Path

import pytest

from octavo.model.config import ModelConfig
from octavo.model.loading.names import names_for
from tests.tiny import CONFIG, tiny_tensors, write_tiny_checkpoint

SEPARATE, STACKED = "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("stored", "model_type"), [(SEPARATE, "mixtral"), (STACKED, "mixtral"), ("", "mistral"), ("", "llama")]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_tables_hold_every_parameter_once(tmp_path: Path, stored: str, model_type: str, tied: bool) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path, model_type=model_type, tie_word_embeddings=tied)
    config = ModelConfig.from_pretrained(checkpoint)
    shapes = names_for(config, [stored], tied).shapes()
    assert sum(map(prod, shapes.values())) == config.num_parameters()
    assert ("lm_head.weight" in shapes) != tied


@pytest.mark.parametrize("model_type", ["mixtral", "mistral"])
def test_the_released_naming_is_what_checkpoints_hold(tmp_path: Path, model_type: str) -> None:
    overrides = {"num_experts_per_tok": 1, "head_dim": 16, "model_type": model_type}
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path, **overrides))
    expected = {name: tuple(tensor.shape) for name, tensor in tiny_tensors(CONFIG | overrides).items()}
    assert names_for(config, expected, tied=False).shapes() == expected


def test_stacked_experts_are_shares_of_one_tensor(tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path))
    layer = names_for(config, [STACKED.replace("0", str(n)) for n in range(2)], tied=False).layers[1]
    assert {source.name for (source,) in layer.gate_up} == {"model.layers.1.mlp.experts.gate_up_proj"}
    assert [source.expert for (source,) in layer.down] == [0, 1, 2, 3]
    assert layer.vectors["router"][0].name == "model.layers.1.mlp.gate.weight"


def test_a_dense_layer_has_one_feed_forward_and_no_router(tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path, model_type="llama"))
    layer = names_for(config, (), tied=False).layers[1]
    assert "router" not in layer.vectors
    ((gate, up),) = layer.gate_up
    ((down,),) = layer.down
    assert gate.name, up.name == ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")
    assert (down.name, down.shape) == ("model.layers.1.mlp.down_proj.weight", (32, 48))
