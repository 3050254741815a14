"""The floors of whole steps follow from bytes and operations, and a profile shows the slowest kernels first."""

import pytest
import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.inputs import SMALL, random_model
from benchmarks.gpu.run import Run
from benchmarks.gpu.steps import LARGEST, profile, step_bytes, step_flop
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


def test_the_slowest_comes_first_with_its_number_of_launches() -> None:
    run = Run(CPU, {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    large, small = torch.ones(2048, 2048), torch.ones(2)  # large enough to outlast a busy neighbour's turn
    profile(run, "a step", lambda: (large @ large, small.add_(1), small.add_(1)))
    assert [each.section for each in run.measured] == ["kernels of a step"] * len(run.measured)
    assert run.measured[0].name == "aten::mm" and run.measured[0].note.endswith("1 launches")
    assert next(each for each in run.measured if each.name == "aten::add_").note.endswith("2 launches")
    assert len(run.measured) <= LARGEST


def test_the_profiler_tells_a_devices_own_seconds() -> None:
    assert hasattr(torch.autograd.profiler_util.FunctionEventAvg(), "self_device_time_total")
