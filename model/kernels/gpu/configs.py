"""Chooses a kernel's tile sizes from a table by device, operation, kind of weights, shape and tokens; needs no torch.

The table is configs.json, with one configuration a line. A tuning run measures candidates and writes it (see save).
"""

import json
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from octavo.model.config import ModelError

FILE = Path(__file__).with_name("configs.json")
ANY = "*"  # shape
# GeForce's Blackwell is newer than Hopper, but its shared memory and its instructions are those of Ada.
AS_SMALL_AS = {"sm_120": "sm_89", "sm_121": "sm_89"}
SAME_BYTES = {"fp16": "bf16", "fp4": "int4"}  # A kind of weights uses the lines of another kind that has as many bytes.


@dataclass(frozen=True, slots=True)
class Config:
    """A Config says how the work of one kernel is cut. The kernel's wrapper says which of these fields it uses."""

    rows: int  # rows of weights in a tile, M of the matrix instruction
    tokens: int  # tokens in a tile, N of the matrix instruction
    inputs: int  # inputs in a tile, its extent along K
    splits: int = 1  # programs that share K, each with partial sums of its own
    warps: int = 4
    stages: int = 3  # tiles along K that are under way at once


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """An Entry says what a line of the table is for."""

    arch: str  # the oldest architecture that it is for: sm_80, sm_86, sm_90
    op: str  # module.function of the wrapper; few.* are experts.* without a sort
    kind: str  # kind of the weights (Stack.kind), or of the activations where there are no weights
    shape: str  # shape of one matrix, "out x in", or ANY
    up_to: int  # most tokens of the batch; the last entry is also for more


Table = dict[Entry, Config]


def arch_of(capability: tuple[int, int]) -> str:
    """Returns the table's name of a compute capability, which torch.cuda.get_device_capability gives."""
    major, minor = capability
    return f"sm_{major}{minor}"


def shape_of(shape: tuple[int, int]) -> str:
    """Returns the table's name of a matrix [out, in]."""
    return f"{shape[0]}x{shape[1]}"


@cache  # Every layer asks for it in every forward pass that is not a graph.
def choose(op: str, kind: str, shape: tuple[int, int], tokens: int, arch: str) -> Config:
    """Returns the configuration for a batch of `tokens` on a device (see arch_of), with matrices of `shape` [out, in].

    An entry for the device itself comes before those for older devices, and one for the shape before those for any.
    Raises ModelError if there is none: the kind is not for so old a device, or there is no such operation.
    """
    kind, limit = SAME_BYTES.get(kind, kind), AS_SMALL_AS.get(arch, arch)
    entries = [entry for entry in table() if (entry.op, entry.kind) == (op, kind)]
    archs = {entry.arch for entry in entries if entry.arch == arch or _level(entry.arch) <= _level(limit)}
    for known in sorted(archs, key=_level, reverse=True):
        for wanted in (shape_of(shape), ANY):
            if buckets := sorted(entry for entry in entries if (entry.arch, entry.shape) == (known, wanted)):
                return table()[next((entry for entry in buckets if entry.up_to >= tokens), buckets[-1])]
    raise ModelError(
        f"The kernel {op} has no configuration for {kind} on {arch}: choose another --dtype or --quantization, or add "
        f"one to {FILE.name}."
    )


@cache
def table() -> Table:
    """Returns the committed table, which nobody may change in place."""
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> Table:
    """Parses a file's text. Raises ValueError or TypeError if it is no table, or has two lines for the same."""
    lines = [({name: line.pop(name) for name in _keys()}, line) for line in json.loads(text)]
    parsed = {Entry(**key): Config(**line) for key, line in lines}
    if len(parsed) != len(lines):
        raise ValueError("The table of configurations has two lines for the same.")
    return parsed


def dump(entries: Table) -> str:
    """Returns the text of a table, sorted, with one line an entry, so that a difference shows what was tuned."""
    lines = (json.dumps(asdict(entry) | asdict(entries[entry])) for entry in sorted(entries))
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n"


def save(entries: Table, path: Path = FILE) -> None:
    """Writes a table. From then on choose() uses it in this process."""
    path.write_text(dump(entries), encoding="utf-8")
    table.cache_clear()
    choose.cache_clear()


def _level(arch: str) -> int:
    return int(arch.removeprefix("sm_"))  # As a number, sm_120 comes after sm_90.


def _keys() -> list[str]:
    return [field.name for field in fields(Entry)]
