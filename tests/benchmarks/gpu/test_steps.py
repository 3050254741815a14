"""The floors of whole steps: bytes and operations of Mixtral 8x7B, against the published figures."""

import pytest
import torch

from benchmarks.gpu.inputs import SMALL, random_model
from benchmarks.gpu.steps import step_bytes, step_flop
from octavo.model.weights.row_major import Int8RowMajor

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [torch.float32, Int8RowMajor])
def test_a_step_reads_everything_but_the_embedding_and_idle_experts(kind: torch.dtype | type[Int8RowMajor]) -> None:
    model = random_model(SMALL, torch.float32, kind, CPU, lambda: None)
    everything = model.weight_bytes - model.embedding.table.nbytes
    layer = model.layers[0].moe.experts
    expert = layer.gate_up[0].nbytes + layer.down[0].nbytes
    idle = (SMALL.num_experts - SMALL.num_experts_per_tok) * SMALL.num_hidden_layers
    assert step_bytes(model, 1) == everything - idle * expert
    assert step_bytes(model, 2) == everything - idle * expert / 2  # of 4 experts a token leaves out half
    assert step_bytes(model, 1000) == pytest.approx(everything)


def test_a_step_multiplies_twice_per_active_weight_and_four_times_per_element_of_a_key() -> None:
    model = random_model(SMALL, torch.float32, torch.float32, CPU, lambda: None)
    table = SMALL.vocab_size * SMALL.hidden_size
    one, both = step_flop(model, [(1, 1)]), step_flop(model, [(1, 1), (1, 8)])
    width = SMALL.num_attention_heads * SMALL.head_dim * SMALL.num_hidden_layers
    assert one == 2 * (SMALL.num_active_parameters() - table) + 4 * width
    assert both - 2 * one == 4 * width * 7
