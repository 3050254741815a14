"""The search goes downhill over tile sizes, here with a function of them for a time, and writes the table."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, log2
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import tune
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.run import Run
from benchmarks.gpu.tune import BOUNDS, Job, Log, changes, descend, neighbours, search, settle
from octavo.model.kernels.gpu import configs
from octavo.model.kernels.gpu.configs import ANY, Config, Entry, Table

START = Config(rows=32, tokens=8, inputs=64)
BEST = Config(rows=128, tokens=16, inputs=256, splits=4, warps=8, stages=5)
SHAPE = (28672, 4096)
GENERAL = Entry("sm_90", "experts.gate_up", "int8", ANY, 64)
ENTRY = replace(GENERAL, shape="28672x4096", up_to=8)


def valley(best: Config) -> Callable[[Config], float]:
    """Returns a time that is shortest at `best`, and longer with every step away from it."""

    def time(config: Config) -> float:
        return 1 + sum(abs(log2(getattr(config, name) / getattr(best, name))) for name in BOUNDS)

    return time


def job(entry: Entry, start: Config = START) -> Job:
    return Job(entry, SHAPE, start, ("rows",), lambda config: ())


def test_the_bottom_is_found() -> None:
    assert descend(START, tuple(BOUNDS), valley(BEST)) == (BEST, 1)


def test_only_what_is_free_is_changed() -> None:
    assert descend(START, ("rows",), valley(BEST))[0] == replace(START, rows=128)


def test_what_does_not_work_is_passed_by() -> None:
    found, seconds = descend(START, tuple(BOUNDS), lambda config: inf if config.rows > 64 else 100 / config.rows)
    assert found.rows == 64 and seconds == 100 / 64


def test_a_start_that_does_not_work_is_left() -> None:
    found, seconds = descend(START, tuple(BOUNDS), lambda config: inf if config.stages > 2 else 1.0)
    assert found.stages == 2 and seconds == 1


def test_noise_is_no_gain() -> None:
    assert descend(START, tuple(BOUNDS), lambda config: 1 - 0.0001 * config.rows)[0] == START


def test_each_candidate_is_prepared_and_timed_once() -> None:
    prepared, timed = [], []
    time = valley(BEST)
    descend(START, tuple(BOUNDS), lambda config: timed.append(config) or time(config), prepared.extend)
    assert prepared == timed and len(set(timed)) == len(timed) < 60


def test_no_neighbour_is_out_of_bounds() -> None:
    smallest = Config(**{name: low for name, (low, _) in BOUNDS.items()})
    largest = Config(**{name: high for name, (_, high) in BOUNDS.items()})
    for config in (smallest, largest):
        for other in neighbours(config, tuple(BOUNDS)):
            assert all(low <= getattr(other, name) <= high for name, (low, high) in BOUNDS.items())


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Puts these lines in the place of the committed table; saving changes only them."""
    lines = {GENERAL: START, replace(GENERAL, up_to=8192): BEST}
    monkeypatch.setattr(configs, "table", lambda: lines)
    monkeypatch.setattr(configs, "save", lines.update)
    return lines


def test_a_line_for_a_shape_hides_no_other_number_of_tokens(table: Table) -> None:
    before = {tokens: configs.choose(ENTRY.op, ENTRY.kind, SHAPE, tokens, ENTRY.arch) for tokens in (64, 65, 9000)}
    found = dict(table)
    settle(found, job(ENTRY), replace(START, rows=256))
    table.update(found)
    assert configs.choose(ENTRY.op, ENTRY.kind, SHAPE, 8, ENTRY.arch) == replace(START, rows=256)
    for tokens, config in before.items():
        assert configs.choose(ENTRY.op, ENTRY.kind, SHAPE, tokens, ENTRY.arch) == config


def test_a_second_line_for_a_shape_leaves_the_first(table: Table) -> None:
    found = dict(table)
    for up_to, rows in ((8, 256), (64, 16)):
        settle(found, job(replace(ENTRY, up_to=up_to)), replace(START, rows=rows))
    assert {entry.up_to: config.rows for entry, config in found.items() if entry.shape != ANY} == {
        8: 256,
        64: 16,
        8192: 128,
    }


def test_a_later_run_goes_on_where_one_ended(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def seconds(self: Job, config: Config) -> float:
        searched.append(self.entry.up_to)
        return 100 / config.rows

    monkeypatch.setattr(Job, "seconds", seconds)
    monkeypatch.setattr(Job, "compile", lambda self, configs: None)
    run = SimpleNamespace(say=lambda what: None)
    lines = [job(replace(ENTRY, up_to=up_to)) for up_to in (8, 64)]
    search(run, lines[:1], Log(tmp_path / "log"), inf)
    search(run, lines, Log(tmp_path / "log"), inf)
    assert list(dict.fromkeys(searched)) == [8, 64] and searched.index(64) == searched.count(8)
    assert table[ENTRY] == table[replace(ENTRY, up_to=64)] == replace(START, rows=256)


def test_what_works_in_no_form_is_left_as_it_is(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "seconds", lambda self, config: inf)
    monkeypatch.setattr(Job, "compile", lambda self, configs: None)
    before, said = dict(table), []
    search(SimpleNamespace(say=said.append), [job(ENTRY)], Log(None), inf)
    assert table == before and "nothing near its line works" in said[0]


def test_no_line_is_begun_when_the_time_is_up(table: Table) -> None:
    before = dict(table)
    search(SimpleNamespace(say=lambda what: None), [job(ENTRY)], Log(None), 0)
    assert table == before


def test_every_round_has_kinds_and_tokens_of_its_own() -> None:
    lines = [(kind, tokens) for kinds, counts in tune.ROUNDS for kind in kinds for tokens in counts]
    assert len(set(lines)) == len(lines) and lines[0] == ("int8", 1)


def test_jobs_run_with_what_the_table_has() -> None:
    run = Run(torch.device("cpu"), {}, SMALL, ("int8",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    made = {}
    for job in tune.jobs(run, ("int8", tune.ATTENTION), (1, 8)):
        made[job.entry.op, job.entry.up_to] = job
        chosen = configs.choose(job.entry.op, job.entry.kind, job.shape, job.entry.up_to, "sm_90")
        assert changes(chosen, job.start).keys() <= {"tokens"}  # down's are gate_up's
    assert list(made) == [
        ("few.gate_up", 1),
        ("few.down", 1),
        ("experts.gate_up", 8),
        ("experts.down", 8),
        ("attention.attend", 1),
        ("attention.attend", 8192),
    ]
    inner = made["few.gate_up", 1].calls(made["few.gate_up", 1].start)[0]()
    assert inner.shape == (SMALL.num_experts_per_tok, SMALL.intermediate_size)
    job = made["experts.down", 8]
    partials = job.calls(replace(job.start, splits=2))[0]()
    assert partials.shape == (2, 8 * SMALL.num_experts_per_tok, SMALL.hidden_size)


def test_a_refused_configuration_takes_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(config: Config) -> tuple[()]:
        raise ValueError("no such tile")

    assert Job(ENTRY, SHAPE, START, ("rows",), refused).seconds(START) == inf
    assert "refused" in capsys.readouterr().err
