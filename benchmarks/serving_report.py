"""The figures of benchmarks.serving as a Markdown table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.figures import Row, Spread
from benchmarks.common.markdown import head, line, milliseconds, spread

HEAD = head("", "streams", "tokens/s: median (range)", "first token p50 / p95", "between tokens p50 / p95", "failed")


@dataclass(frozen=True, slots=True)
class Comparison:
    """transformers' `generate` on the prompts of one stream."""

    choice: str  # its fastest dtype and implementation of the experts
    row: Row
    ratio: Spread  # of Octavo's tokens/s at one stream to its, round by round


def table(machine: dict[str, Any], model: str, rows: Sequence[Row], comparison: Comparison) -> str:
    """What is printed at the end: where it was measured, a row for each load, and how they compare."""
    most = rows[-1]
    gain = most.tokens_per_second.median / rows[0].tokens_per_second.median
    return "\n".join(
        (
            f"{model} on {machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load before the run {machine['load_average']:.2f}",
            ", ".join(f"{name} {machine[name]}" for name in ("octavo", "torch", "transformers", "python")),
            "",
            *HEAD,
            *(_line("Octavo", row) for row in rows),
            _line(f"transformers generate ({comparison.choice})", comparison.row),
            "",
            f"Octavo / transformers at one stream: {spread(comparison.ratio, 2)}",
            f"Octavo at {most.streams} streams / at one: {gain:.2f}",
        )
    )


def _line(name: str, row: Row) -> str:
    return line(
        name,
        str(row.streams),
        spread(row.tokens_per_second, 1),
        f"{milliseconds(row.first_token_p50)} / {milliseconds(row.first_token_p95)}",
        f"{milliseconds(row.inter_token_p50)} / {milliseconds(row.inter_token_p95)}",
        f"{row.failed} of {row.requests}",
    )
