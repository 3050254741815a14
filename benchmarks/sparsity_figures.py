"""What benchmarks.sparsity measures, and the table that comes of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.checkpoint import SHAPES
from benchmarks.common.figures import Spread
from benchmarks.common.loads import Load
from benchmarks.common.markdown import head, line, spread
from octavo.model.config import ModelConfig

SPARSE, SAME_TOTAL, SAME_ACTIVE = SHAPES
NAMES = {SPARSE: "sparse", SAME_TOTAL: "dense, same total", SAME_ACTIVE: "dense, same active"}

LOADS = (Load("1 stream", 1, 8, 33), Load("16 streams", 16, 8, 21), Load("prefill of 512", 1, 512, 1))


@dataclass(frozen=True, slots=True)
class Measured:
    """One model, and its tokens a second in each round of each load."""

    parameters: int
    active: int  # that a token is multiplied with: of the embedding it only reads a row
    description: str
    load_seconds: float
    anonymous_bytes: int  # once loaded
    rounds: dict[str, list[float]] = field(default_factory=lambda: {load.name: [] for load in LOADS})

    @classmethod
    def of(cls, directory: Path, hello: dict[str, Any]) -> "Measured":
        config = ModelConfig.from_pretrained(directory)
        return cls(
            parameters=config.num_parameters(),
            active=config.num_active_parameters() - config.vocab_size * config.hidden_size,
            description=hello["description"][0],
            load_seconds=hello["load_seconds"],
            anonymous_bytes=hello["anonymous_bytes"],
        )

    def times(self, other: "Measured", load: str) -> Spread:
        """How many times as fast as another model it is, round by round."""
        return Spread.over(ours / theirs for ours, theirs in zip(self.rounds[load], other.rounds[load], strict=True))


def table(machine: dict[str, Any], measured: dict[str, Measured]) -> str:
    """What is printed at the end: a row for each model, and how they compare."""
    ratios = [
        line(
            f"sparse / {NAMES[other]}",
            *("",) * 3,
            *(spread(measured[SPARSE].times(measured[other], load.name), 2) for load in LOADS),
        )
        for other in (SAME_TOTAL, SAME_ACTIVE)
    ]
    return "\n".join(
        (
            f"{machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load before the run {machine['load_average']:.2f}; "
            f"octavo {machine['octavo']}, torch {machine['torch']}, python {machine['python']}",
            *(f"{NAMES[shape]}: {one.description}" for shape, one in measured.items()),
            "",
            *head("", "parameters", "active", "memory", *(f"{load.name}, tokens/s" for load in LOADS)),
            *(_row(NAMES[shape], one) for shape, one in measured.items()),
            *ratios,
        )
    )


def _row(name: str, one: Measured) -> str:
    rates = (spread(Spread.over(one.rounds[load.name]), 1) for load in LOADS)
    return line(
        name, f"{one.parameters / 1e9:.3f}B", f"{one.active / 1e9:.3f}B", f"{one.anonymous_bytes / 1e9:.2f} GB", *rates
    )


def report(machine: dict[str, Any], flags: Sequence[str], measured: dict[str, Measured]) -> dict[str, Any]:
    """The same as JSON, with every round."""
    sparse = measured[SPARSE]
    return {
        "machine": machine,
        "flags": list(flags),
        "models": {shape: asdict(one) for shape, one in measured.items()},
        "sparse_over": {
            other: {load.name: asdict(sparse.times(measured[other], load.name)) for load in LOADS}
            for other in (SAME_TOTAL, SAME_ACTIVE)
        },
    }
