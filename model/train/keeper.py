"""Keeps what a training has come to on the disk, so that it goes on after any end, and ends in the same numbers."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from octavo.model.config import ModelError
from octavo.model.train.adam import AdamState
from octavo.model.train.files import write_whole


@dataclass(slots=True)
class Keeper:
    """A Keeper writes into one directory. It saves unfinished work every so many seconds."""

    directory: Path
    seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    _last: float = field(default=0.0, init=False)

    def started(self, name: str, device: torch.device) -> tuple[AdamState, Tensor] | None:
        """Returns the state of unfinished work and its losses so far; None where there is none."""
        self._last = self.clock()
        found = self._load(f"{name}.state", device)
        if found is None:
            return None
        groups = {group: _group(found, group) for group in ("parameters", "mean", "square")}
        return AdamState(step=int(found["step"]), **groups), found["curve"].cpu()

    def keep(self, name: str, state: AdamState, curve: list[float]) -> None:
        """Saves unfinished work if it is time. Raises ModelError where the disk does not take it."""
        if self.clock() - self._last < self.seconds:
            return
        groups = {"parameters": state.parameters, "mean": state.mean, "square": state.square}
        tensors = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        tensors |= {"step": torch.tensor(state.step), "curve": torch.tensor(curve, dtype=torch.float64)}
        self._save(f"{name}.state", tensors)
        self._last = self.clock()

    def finished(self, name: str, device: torch.device) -> dict[str, Tensor] | None:
        """Returns what `finish` was given; None where that has not happened."""
        return self._load(f"{name}.done", device)

    def finish(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Saves the result of a piece of work. Raises ModelError where the disk does not take it."""
        self._save(f"{name}.done", tensors)
        (self.directory / f"{name}.state").unlink(missing_ok=True)

    def read(self, name: str) -> Any:
        """Returns a JSON value that `write` was given; None where there is none."""
        path = self.directory / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Raises ModelError where the disk does not take it."""
        self._write(f"{name}.json", (json.dumps(value, indent=2) + "\n").encode())

    def _load(self, file: str, device: torch.device) -> dict[str, Tensor] | None:
        path = self.directory / file
        if not path.is_file():
            return None
        try:
            # A copy lies at an address like any other tensor's, and sums are then rounded as if nothing had happened.
            return {name: tensor.to(device, copy=True) for name, tensor in load(path.read_bytes()).items()}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged ({error}): remove it, and run the same command again.") from None

    def _save(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._write(file, save(held))

    def _write(self, file: str, contents: bytes) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(self.directory / file, contents)
        except OSError as error:
            raise unwritten(self.directory, error) from None


def unwritten(directory: Path, error: OSError) -> ModelError:
    """Returns what to tell about a disk that does not take the work."""
    return ModelError(
        f"{directory} cannot be written ({error.strerror}): make room there or repair it, and run the same command "
        "again; it goes on where it was."
    )


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}."): each for name, each in tensors.items() if name.startswith(f"{group}.")}
