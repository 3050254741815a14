"""What a step takes beside the GPU's own time: scheduling, launching, sampling, and waiting for the tokens."""

from benchmarks.gpu.engine import Driver
from benchmarks.gpu.run import Run
from benchmarks.gpu.steps import layers_note, model_of, served
from benchmarks.gpu.table import Measured

SEQUENCES, SMALL_SEQUENCES = (1, 8, 64), (2,)


def measure(run: Run) -> None:
    """In every kind of weights that can be served."""
    for name in served(run):
        with run.attempt(f"engine in {name}"):
            _kind(run, name)
        run.forget()


def _kind(run: Run, name: str) -> None:
    model = model_of(run, name)
    counts = SEQUENCES if run.is_real else SMALL_SEQUENCES
    driver = Driver.of(run, model, counts)
    for sequences in counts:
        with run.attempt(f"engine in {name}, B={sequences}"):
            wall = driver.decode(sequences)
            device = driver.device_seconds(sequences)
            notes = [layers_note(run, model), "no graph" if device is None else _beside(wall.median, device)]
            run.add(
                Measured(
                    section="the engine's step of B sequences by the clock on the wall; floor: the GPU alone",
                    name=f"{name}, B={sequences}",
                    floor=device,
                    time=wall,
                    note=", ".join(filter(None, notes)),
                )
            )


def _beside(wall: float, device: float) -> str:
    """Both in seconds a step."""
    return f"{(wall - device) * 1e3:.2f} ms outside the GPU, which is idle for {1 - device / wall:.1%}"
