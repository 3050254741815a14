"""Checks the table of tile sizes: which line is chosen, that kernels which share a sort agree, how it is written."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from octavo.model.config import ModelError
from octavo.model.kernels.gpu import configs
from octavo.model.kernels.gpu.configs import Config, Entry

ARCHS = ("sm_80", "sm_86", "sm_90")
SMALL, LARGE, OWN, NEWER = (Config(rows, 16, 64) for rows in (16, 32, 64, 128))
TABLE = {
    Entry("sm_80", "op", "bf16", "*", 8): SMALL,
    Entry("sm_80", "op", "bf16", "*", 64): LARGE,
    Entry("sm_80", "op", "bf16", "32x64", 8): OWN,
    Entry("sm_90", "op", "bf16", "*", 64): NEWER,
}


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(configs, "table", lambda: TABLE)
    configs.choose.cache_clear()
    yield
    configs.choose.cache_clear()


@pytest.mark.usefixtures("small_table")
@pytest.mark.parametrize(
    ("shape", "tokens", "arch", "expected"),
    [
        ((16, 16), 1, "sm_80", SMALL),
        ((16, 16), 8, "sm_80", SMALL),
        ((16, 16), 9, "sm_80", LARGE),
        ((16, 16), 65, "sm_80", LARGE),
        ((32, 64), 1, "sm_80", OWN),
        ((32, 64), 9, "sm_80", OWN),
        ((16, 16), 1, "sm_89", SMALL),
        ((32, 64), 1, "sm_90", NEWER),
        ((16, 16), 1, "sm_100", NEWER),
        ((16, 16), 1, "sm_120", SMALL),
    ],
)
def test_the_device_goes_first_then_the_shape_then_the_tokens(
    shape: tuple[int, int], tokens: int, arch: str, expected: Config
) -> None:
    assert configs.choose("op", "bf16", shape, tokens, arch) == expected
    assert configs.choose("op", "fp16", shape, tokens, arch) == expected


@pytest.mark.usefixtures("small_table")
@pytest.mark.parametrize(
    ("op", "kind", "arch"), [("op", "bf16", "sm_75"), ("op", "fp8", "sm_90"), ("no", "bf16", "sm_90")]
)
def test_what_no_line_is_for_is_refused(op: str, kind: str, arch: str) -> None:
    with pytest.raises(ModelError, match=f"{op} has no configuration for {kind} on {arch}"):
        configs.choose(op, kind, (16, 16), 1, arch)


@pytest.mark.parametrize(
    ("kind", "arch"), [*product(("bf16", "fp16", "fp32", "int8", "int4"), ARCHS), ("fp8", "sm_89"), ("fp8", "sm_90")]
)
def test_one_sort_serves_both_projections(kind: str, arch: str) -> None:
    for tokens in (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 4096, 100_000):
        gate_up = configs.choose("experts.gate_up", kind, (28672, 4096), tokens, arch)
        down = configs.choose("experts.down", kind, (4096, 14336), tokens, arch)
        assert gate_up.tokens == down.tokens
        assert gate_up.splits == 1


def test_each_line_is_for_twice_the_tokens_of_the_one_before_it() -> None:
    """Steps that double from one token on therefore use every line, and Probe.compile relies on that."""
    limits: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for entry in configs.table():
        if entry.op.startswith("experts."):  # A step looks up a line for each of the two products.
            limits[entry.arch, entry.kind, entry.shape].add(entry.up_to)
    assert limits
    for each in limits.values():
        assert all(2 * lower <= upper for lower, upper in pairwise(sorted(each))), each


def test_sizes_are_powers_of_two() -> None:
    for config in configs.table().values():
        for size in (config.rows, config.tokens, config.inputs, config.splits, config.warps):
            assert size.bit_count() == 1
        assert 1 <= config.stages <= 8


def test_the_committed_file_is_as_it_would_be_written() -> None:
    assert configs.FILE.read_text(encoding="utf-8") == configs.dump(configs.table())


def test_a_saved_table_is_read_again(tmp_path: Path) -> None:
    entry = Entry("sm_90", "op", "int4", configs.shape_of((4096, 14336)), 16)
    written = TABLE | {entry: replace(LARGE, splits=4)}
    configs.save(written, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    assert configs.parse(text) == written
    assert configs.dump(dict(reversed(written.items()))) == text
    assert len(text.splitlines()) == len(written) + 2


def test_a_line_said_twice_is_refused() -> None:
    line = configs.dump({Entry("sm_90", "op", "int4", "*", 16): LARGE}).splitlines()[1]
    with pytest.raises(ValueError, match="two lines for the same"):
        configs.parse(f"[{line}, {line}]")


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "sm_80"), ((9, 0), "sm_90"), ((12, 0), "sm_120")])
def test_a_device_has_its_compute_capabilitys_name(capability: tuple[int, int], arch: str) -> None:
    assert configs.arch_of(capability) == arch
