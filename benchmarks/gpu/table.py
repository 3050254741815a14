"""What was measured on a GPU: rows with a floor below each time, as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.common.figures import Spread
from benchmarks.common.markdown import line

HEAD = (
    "| | floor | time: median (range) | of the floor's rate | others' time / ours |",
    "|---|---:|---:|---:|---|",
)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was seen to do at its best, in the same run."""

    read: float  # bytes a second that kernels read
    product: float  # FLOP a second, of a large bfloat16 matrix product
    copy: float  # bytes a second from pinned memory

    def floor(self, bytes_read: float, flop: float = 0.0) -> float:
        """Seconds below which nothing is that reads and multiplies so much."""
        return max(bytes_read / self.read, flop / self.product)


@dataclass(frozen=True, slots=True)
class Measured:
    """One operation, in one size."""

    section: str
    name: str
    floor: float | None  # seconds; None where there is none to speak of
    time: Spread  # seconds
    others: dict[str, Spread] = field(default_factory=dict)  # seconds, of whoever does the same
    note: str = ""

    @property
    def share(self) -> float | None:
        """Of the floor's rate that was reached."""
        return None if self.floor is None else self.floor / self.time.median


@dataclass(frozen=True, slots=True)
class Checked:
    """One kernel against float64."""

    name: str
    error: float  # root of the mean squared difference, of that of the values
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # and so a NaN has not


Findings = tuple[Sequence[Checked], Mapping[str, str]]  # the comparisons; what could not be measured, and why


def markdown(machine: dict[str, Any], ceilings: Ceilings, findings: Findings, rows: Sequence[Measured]) -> str:
    """All of it."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        f"read {ceilings.read / 1e12:.2f} TB/s, bfloat16 product {ceilings.product / 1e12:.0f} TFLOP/s, "
        f"pinned copy {ceilings.copy / 1e9:.1f} GB/s",
    ]
    checks, failures = findings
    if checks:
        wrong = [check for check in checks if not check.passed]
        lines += ["", f"{len(checks) - len(wrong)} of {len(checks)} comparisons with float64 hold"]
        lines += [f"- {each.name}: error {each.error:.2%}, at most {each.allowed:.2%} is allowed" for each in wrong]
    if failures:
        lines += ["", "not measured:", *(f"- {what}: {why}" for what, why in failures.items())]
    for section in dict.fromkeys(row.section for row in rows):
        lines += ["", f"### {section}", "", *HEAD, *(row_line(row) for row in rows if row.section == section)]
    return "\n".join(lines)


def document(
    machine: dict[str, Any], ceilings: Ceilings, findings: Findings, rows: Sequence[Measured]
) -> dict[str, Any]:
    """The same for programs."""
    checks, failures = findings
    return {
        "machine": machine,
        "ceilings": asdict(ceilings),
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
        "failures": dict(failures),
        "rows": [{**asdict(row), "share": row.share} for row in rows],
    }


def row_line(row: Measured) -> str:
    """One row of the table."""
    others = ", ".join(f"{name} {each.median / row.time.median:.2f}" for name, each in row.others.items())
    return line(
        f"{row.name} ({row.note})" if row.note else row.name,
        "-" if row.floor is None else _seconds(row.floor),
        f"{_seconds(row.time.median)} ({_seconds(row.time.low)} to {_seconds(row.time.high)})",
        "-" if row.share is None else f"{row.share:.0%}",
        others or "-",
    )


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
