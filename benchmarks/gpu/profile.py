"""Where a step's time goes on a GPU: the seconds of each kernel, as torch's profiler counts them."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity

from benchmarks.common.figures import Spread
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import Measured

STEPS, SMALL_STEPS = 5, 1
LARGEST = 12  # kernels that are shown


def profile(run: Run, what: str, step: Callable[[], object]) -> None:
    """A row for each of the kernels that take most of a step; to their sum a step adds the gaps between them."""
    steps = STEPS if run.is_real else SMALL_STEPS
    step()
    activity = ProfilerActivity.CUDA if run.is_real else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(steps):
            step()
        if run.is_real:
            torch.cuda.synchronize()
    kernels = {event.key: (_microseconds(run, event), event.count) for event in profiler.key_averages()}
    total = sum(each for each, _ in kernels.values())
    for name, (each, count) in sorted(kernels.items(), key=lambda kernel: -kernel[1][0])[:LARGEST]:
        run.add(
            Measured(
                section=f"kernels of {what}",
                name=name.replace("|", "/")[:60],
                floor=None,
                time=Spread.over([each / steps * 1e-6]),
                note=f"{each / total:.1%}, {count / steps:g} launches",
            )
        )


def _microseconds(run: Run, event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
    return event.self_device_time_total if run.is_real else event.self_cpu_time_total
