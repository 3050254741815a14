"""Random weights are stacks as a loader makes them, and as many layers are made as fit."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.inputs import MIXTRAL_8X7B, SMALL, Kind, copy_of, experts_of, layers_that_fit, random_model
from octavo.model.weights.precision import Precision
from octavo.model.weights.row_major import Int4RowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.stack import Stack

CPU = torch.device("cpu")
GB = 10**9


def test_the_true_shape_has_the_published_number_of_parameters() -> None:
    assert round(MIXTRAL_8X7B.num_parameters() / 1e6) == 46703
    assert round(MIXTRAL_8X7B.num_active_parameters() / 1e6) == 12880


@pytest.mark.parametrize(
    ("kind", "available", "layers"),
    [
        (torch.bfloat16, 60, 20),
        (torch.bfloat16, 100, 32),
        (Int8RowMajor, 60, 32),
        (Int4RowMajor, 14, 16),
        (Int8RowMajor, 0, 1),
    ],
)
def test_as_many_layers_as_fit(kind: Kind, available: int, layers: int) -> None:
    precision = Precision(torch.bfloat16, kind, torch.bfloat16)
    assert layers_that_fit(MIXTRAL_8X7B, precision, available * GB) == layers
    assert layers == 1 or precision.weight_bytes(replace(MIXTRAL_8X7B, num_hidden_layers=layers)) <= available * GB


@pytest.mark.parametrize("kind", [torch.float32, Int8RowMajor, Int4RowMajor])
def test_a_copy_is_a_stack_of_the_same_weights_elsewhere(kind: Kind) -> None:
    experts = experts_of(SMALL, kind, CPU)
    copy = copy_of(experts)
    for ours, theirs in ((experts.gate_up, copy.gate_up), (experts.down, copy.down)):
        one, other = Stack.of(ours), Stack.of(theirs)
        assert one.quants.data_ptr() != other.quants.data_ptr()
        assert one.quants.equal(other.quants)
        assert one.scales is None or one.scales.equal(other.scales)


def test_all_layers_are_there_and_no_two_share_memory() -> None:
    done = []
    config = replace(SMALL, num_hidden_layers=3)
    model = random_model(config, torch.float32, Int8RowMajor, CPU, lambda: done.append(1))
    assert len(done) == len(model.layers) == 3
    firsts = [layer.moe.experts.gate_up[0] for layer in model.layers]
    assert len({first.quants.data_ptr() for first in firsts if isinstance(first, RowMajorWeight)}) == 3


def test_outputs_are_about_as_large_as_inputs() -> None:
    (gate_up, *_), _ = (experts_of(SMALL, torch.float32, CPU).gate_up, None)
    assert isinstance(gate_up, torch.Tensor)
    assert 0.8 < (torch.randn(64, SMALL.hidden_size) @ gate_up.T).std() < 1.2
