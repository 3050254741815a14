"""The tables of tensor names: complete for either layout, and as large as the model."""

from math import prod
from pathlib import Path

import pytest

from model.config import ModelConfig
from model.names import Layout, names_for
from tests.tiny import CONFIG, tiny_tensors, write_tiny_checkpoint


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("tied", [True, False])
def test_the_tables_hold_every_parameter_once(tmp_path: Path, layout: Layout, tied: bool) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path, tie_word_embeddings=tied))
    shapes = names_for(config, layout, tied).shapes()
    assert sum(map(prod, shapes.values())) == config.num_parameters()
    assert ("lm_head.weight" in shapes) != tied


def test_the_released_layout_is_what_checkpoints_hold(tmp_path: Path) -> None:
    overrides = {"num_experts_per_tok": 1, "head_dim": 16}
    write_tiny_checkpoint(tmp_path, **overrides)
    expected = {name: tuple(tensor.shape) for name, tensor in tiny_tensors(CONFIG | overrides).items()}
    assert names_for(ModelConfig.from_pretrained(tmp_path), Layout.PER_EXPERT, tied=False).shapes() == expected


def test_fused_experts_are_shares_of_one_tensor(tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path))
    layer = names_for(config, Layout.FUSED, tied=False).layers[1]
    assert {part.name for (part,) in layer.gate_up} == {"model.layers.1.mlp.experts.gate_up_proj"}
    assert [part.expert for (part,) in layer.down] == [0, 1, 2, 3]
    assert layer.router.name == "model.layers.1.mlp.gate.weight"
