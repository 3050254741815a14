"""The kernels of a step, the slowest first."""

import torch

from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.profile import LARGEST, profile
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import Ceilings


def test_the_slowest_comes_first_with_its_number_of_launches() -> None:
    run = Run(torch.device("cpu"), {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    large, small = torch.ones(512, 512), torch.ones(2)
    profile(run, "a step", lambda: (large @ large, small.add_(1), small.add_(1)))
    assert [row.section for row in run.rows] == ["kernels of a step"] * len(run.rows)
    assert run.rows[0].name == "aten::mm" and run.rows[0].note.endswith("1 launches")
    assert next(row for row in run.rows if row.name == "aten::add_").note.endswith("2 launches")
    assert len(run.rows) <= LARGEST


def test_the_profiler_tells_a_devices_own_seconds() -> None:
    assert hasattr(torch.autograd.profiler_util.FunctionEventAvg(), "self_device_time_total")
