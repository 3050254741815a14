"""What the sections of a GPU's benchmark share: the device, how it is timed, what was asked for, and what was found."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.gpu import ceilings as gpu_ceilings
from benchmarks.gpu.clock import Clock, CudaClock, HostClock
from benchmarks.gpu.inputs import MIXTRAL_8X7B, SMALL, Kind
from benchmarks.gpu.table import Ceilings, Checked, Measured, document, markdown, row_line
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu.configs import arch_of
from octavo.model.weights.kinds import ExpertWeights
from octavo.model.weights.precision import FP8_CAPABILITY
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor

KINDS: dict[str, Kind] = {
    "bf16": torch.bfloat16,
    "int8": Int8RowMajor,
    "int8-groups": Int8GroupedRowMajor,
    "int4": Int4RowMajor,
    "fp8": Fp8RowMajor,
}
TOKENS, SMALL_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 3)

# A peer's experts: x [T, H], ids [T, k], weights [T, k], and one layer's weights in bfloat16 -> [T, H].
Peer = Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a section needs, and what it has found."""

    device: torch.device
    machine: dict[str, Any]
    config: ModelConfig
    kinds: tuple[str, ...]
    tokens: tuple[int, ...]  # of a step
    peers: dict[str, Peer]
    ceilings: Ceilings
    rows: list[Measured] = field(default_factory=list)
    checks: list[Checked] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # what raised, and what it said
    started: float = field(default_factory=monotonic)

    @property
    def is_real(self) -> bool:
        """Whether there is a GPU; else everything runs in Triton's interpreter and no time means anything."""
        return self.device.type == "cuda"

    @property
    def clock(self) -> Clock:
        return clock_of(self.device)

    @property
    def arch(self) -> str:
        return arch_of(torch.cuda.get_device_capability(self.device)) if self.is_real else "sm_90"

    @property
    def processors(self) -> int:
        return torch.cuda.get_device_properties(self.device).multi_processor_count if self.is_real else 4

    @property
    def dtype(self) -> torch.dtype:
        """Of activations. Triton's interpreter gets bfloat16 wrong."""
        return torch.bfloat16 if self.is_real else torch.float32

    def kind(self, name: str) -> Kind:
        """What the weights of that name are held as."""
        return self.dtype if name == "bf16" else KINDS[name]

    def available(self) -> int:
        """Bytes of memory that are left on the device."""
        return torch.cuda.mem_get_info(self.device)[0] if self.is_real else 1 << 30

    def add(self, row: Measured) -> None:
        self.rows.append(row)
        self.say(f"{row.section}: {row_line(row)}")

    def check(self, name: str, error: float, allowed: float) -> None:
        """What a kernel's result was off by, as a share; a NaN fails."""
        self.checks.append(Checked(name, error, allowed))
        if not self.checks[-1].passed:
            self.say(f"WRONG: {name}, error {error:.3%} of at most {allowed:.3%}")

    def say(self, what: str) -> None:
        """Progress; the figures come on stdout, at the end."""
        print(f"[{monotonic() - self.started:5.0f} s] {what}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails is told at the end, and the rest is measured all the same: the next chance may be days away."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failures[what] = f"{type(error).__name__}: {error}"[:500]

    def forget(self) -> None:
        """Gives back what a section's tensors took."""
        gc.collect()
        if self.is_real:
            torch.cuda.empty_cache()

    def markdown(self) -> str:
        return markdown(self.machine, self.ceilings, (self.checks, self.failures), self.rows)

    def document(self) -> dict[str, Any]:
        return document(self.machine, self.ceilings, (self.checks, self.failures), self.rows)


def begin(
    device: torch.device,
    kinds: tuple[str, ...] | None = None,
    tokens: tuple[int, ...] | None = None,
    peers: dict[str, Peer] | None = None,
) -> Run:
    """Measures the ceilings. Raises SystemExit for a kind of weights that there is not, or not on this device."""
    real = device.type == "cuda"
    possible = kinds_of(device)
    if unknown := [name for name in kinds or () if name not in possible]:
        raise SystemExit(f"{', '.join(unknown)}: choose kinds of weights among {', '.join(possible)}.")
    return Run(
        device=device,
        machine=describe(device),
        config=MIXTRAL_8X7B if real else SMALL,
        kinds=kinds or possible,
        tokens=tokens or (TOKENS if real else SMALL_TOKENS),
        peers=peers or {},
        ceilings=gpu_ceilings.measure(device, clock_of(device)),
    )


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()


def kinds_of(device: torch.device) -> tuple[str, ...]:
    """Those that a device computes with."""
    has_fp8 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    return tuple(name for name in KINDS if has_fp8 or name != "fp8")


def describe(device: torch.device) -> dict[str, Any]:
    """The device, and the versions that a figure depends on."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if device.type != "cuda":
        return {"device": "none: Triton's interpreter, at a small size; these times mean nothing", **versions}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20),
        "cuda": torch.version.cuda,
        **versions,
    }
