"""Measures how fast a checkpoint of a few layers comes from the page cache to the GPU: section `load`."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.figures import Spread
from benchmarks.gpu.inputs import Kind, matrix_of
from benchmarks.gpu.run import Measurement, Run
from benchmarks.gpu.steps import served
from octavo.model.config import ModelConfig
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.loading.names import names_for
from octavo.model.weights.precision import Precision

LAYERS, TIMES = 2, 3


def measure(run: Run) -> None:
    """Loads the checkpoint as every kind of weights that can be served; most are quantised on the way."""
    config = replace(run.config, num_hidden_layers=LAYERS)
    with tempfile.TemporaryDirectory() as scratch:
        stored = write_checkpoint(Path(scratch), config, run.device)
        run.say(f"wrote {stored / 1e9:.1f} GB")
        load_seconds(Path(scratch), config, run, run.dtype)  # warms up the page cache and the device
        for name in served(run):
            with run.attempt(f"loading as {name}"):
                times = TIMES if run.is_real else 1
                seconds = [load_seconds(Path(scratch), config, run, run.kind(name)) for _ in range(times)]
                run.add(
                    Measurement(
                        section=f"loading {LAYERS} layers, {stored / 1e9:.1f} GB in bfloat16",
                        name=f"as {name}",
                        floor=stored / run.ceilings.copy,
                        time=Spread.over(seconds),
                        note=f"{stored / min(seconds) / 1e9:.1f} GB/s",
                    )
                )
            run.forget()


def write_checkpoint(directory: Path, config: ModelConfig, device: torch.device) -> int:
    """Writes random weights under the names with which Mixtral was released; returns their bytes."""
    shapes = names_for(config, (), tied=False).shapes()
    tensors = {name: _random(shape, device) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "mixtral"}), encoding="utf-8")
    return sum(tensor.nbytes for tensor in tensors.values())


def load_seconds(directory: Path, config: ModelConfig, run: Run, kind: Kind) -> float:
    """Returns the seconds until the last weight is on the device."""
    precision = Precision(run.dtype, kind, run.dtype)
    started = perf_counter()
    model = load_model(directory, config, select_backend(config, run.device), precision)
    if run.is_real:
        torch.cuda.synchronize()
    seconds = perf_counter() - started
    del model
    return seconds


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return matrix_of((shape[-2], shape[-1]), torch.bfloat16, device).cpu()
