"""A Run holds what the sections of the GPU's benchmark share: the device, its clock, the options and the figures."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.common.figures import Spread, table_line
from benchmarks.gpu import ceilings
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import Clock, CudaClock, HostClock
from benchmarks.gpu.inputs import MIXTRAL_8X7B, SMALL, Kind
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu.configs import arch_of
from octavo.model.weights.forms import ExpertWeights
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
TABLE_HEAD = (
    "| | floor | time: median (range) | of the floor's rate | others' time / ours |",
    "|---|---:|---:|---:|---|",
)

# A peer computes one layer's experts: x [T, H], ids [T, k], weights [T, k], and the layer in bfloat16 -> [T, H].
ExpertsPeer = Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A Measurement is the time of one operation in one size."""

    section: str
    name: str
    floor: float | None  # seconds; None: no floor is known
    time: Spread  # seconds
    others: dict[str, Spread] = field(default_factory=dict)  # seconds of peers that do the same
    note: str = ""

    @property
    def share(self) -> float | None:
        """Returns the share of the floor's rate that was reached."""
        return None if self.floor is None else self.floor / self.time.median

    def line(self) -> str:
        """Returns the measurement as one line of a table."""
        others = ", ".join(f"{name} {each.median / self.time.median:.2f}" for name, each in self.others.items())
        return table_line(
            f"{self.name} ({self.note})" if self.note else self.name,
            "-" if self.floor is None else _seconds(self.floor),
            f"{_seconds(self.time.median)} ({_seconds(self.time.low)} to {_seconds(self.time.high)})",
            "-" if self.share is None else f"{self.share:.0%}",
            others or "-",
        )


@dataclass(frozen=True, slots=True)
class Check:
    """A Check is the error of one kernel's result against float64."""

    name: str
    error: float  # root of the mean squared difference, relative to that of the expected values
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for a NaN


@dataclass(frozen=True, slots=True)
class Run:
    """A Run is everything that a section needs, and what the sections have found."""

    device: torch.device
    machine: dict[str, Any]
    config: ModelConfig
    kinds: tuple[str, ...]
    tokens: tuple[int, ...]  # the sizes of steps that are measured
    peers: dict[str, ExpertsPeer]
    ceilings: Ceilings
    measured: list[Measurement] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # what raised -> its message
    started: float = field(default_factory=monotonic)

    @property
    def is_real(self) -> bool:
        """Says whether there is a GPU; else everything runs in Triton's interpreter and no time means anything."""
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
        """Returns the dtype of activations. Triton's interpreter computes bfloat16 wrongly."""
        return torch.bfloat16 if self.is_real else torch.float32

    def kind(self, name: str) -> Kind:
        """Returns the dtype, or the class, that holds weights of that name."""
        return self.dtype if name == "bf16" else KINDS[name]

    def available(self) -> int:
        """Returns the bytes of memory that are left on the device."""
        return torch.cuda.mem_get_info(self.device)[0] if self.is_real else 1 << 30

    def add(self, measurement: Measurement) -> None:
        self.measured.append(measurement)
        self.say(f"{measurement.section}: {measurement.line()}")

    def check(self, name: str, error: float, allowed: float) -> None:
        """Notes the relative error of a kernel's result; a NaN fails."""
        self.checks.append(Check(name, error, allowed))
        if not self.checks[-1].passed:
            self.say(f"WRONG: {name}, error {error:.3%} of at most {allowed:.3%}")

    def say(self, text: str) -> None:
        """Prints progress to stderr; the figures are printed to stdout, at the end."""
        print(f"[{monotonic() - self.started:5.0f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Notes what fails and lets the rest be measured: the next chance to use a GPU may be days away."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failures[name] = f"{type(error).__name__}: {error}"[:500]

    def forget(self) -> None:
        """Frees the memory that a section's tensors took."""
        gc.collect()
        if self.is_real:
            torch.cuda.empty_cache()

    def markdown(self) -> str:
        """Returns everything that was found, with a table for each section."""
        rates = self.ceilings
        lines = [
            ", ".join(f"{name} {value}" for name, value in self.machine.items()),
            "",
            f"read {rates.read / 1e12:.2f} TB/s, bfloat16 product {rates.product / 1e12:.0f} TFLOP/s, "
            f"pinned copy {rates.copy / 1e9:.1f} GB/s",
        ]
        if self.checks:
            wrong = [check for check in self.checks if not check.passed]
            lines += ["", f"{len(self.checks) - len(wrong)} of {len(self.checks)} comparisons with float64 hold"]
            lines += [f"- {each.name}: error {each.error:.2%}, at most {each.allowed:.2%} is allowed" for each in wrong]
        if self.failures:
            lines += ["", "not measured:", *(f"- {name}: {message}" for name, message in self.failures.items())]
        for section in dict.fromkeys(each.section for each in self.measured):
            lines += ["", f"### {section}", "", *TABLE_HEAD]
            lines += [each.line() for each in self.measured if each.section == section]
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """Returns everything that was found, for JSON."""
        return {
            "machine": self.machine,
            "ceilings": asdict(self.ceilings),
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "failures": dict(self.failures),
            "rows": [{**asdict(each), "share": each.share} for each in self.measured],
        }


def begin(
    device: torch.device,
    kinds: tuple[str, ...] | None = None,
    tokens: tuple[int, ...] | None = None,
    peers: dict[str, ExpertsPeer] | None = None,
) -> Run:
    """Measures the ceilings. Raises SystemExit for a kind of weights that is unknown, or not for this device."""
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
        ceilings=ceilings.measure(device, clock_of(device)),
    )


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()


def kinds_of(device: torch.device) -> tuple[str, ...]:
    """Returns the kinds of weights that the device computes with."""
    has_fp8 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    return tuple(name for name in KINDS if has_fp8 or name != "fp8")


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the device, and the versions that a figure depends on."""
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


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills tensors that are allocated here with NaN, or the largest integer, until a kernel writes them."""
    # torch fills them when it is asked to be deterministic. Its warnings are about operations of its own.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the root of the mean squared difference, relative to that of the expected values."""
    wide = expected.double()
    return ((actual.double() - wide).square().mean() / wide.square().mean()).sqrt().item()


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
