"""A default model is either whole or absent, however its build ends."""

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from octavo.model.config import ModelError
from octavo.model.demo import default_model as upcycle
from octavo.model.demo.default_model import build, default_directory, is_complete
from octavo.model.demo.pinned import PinnedModel
from tests.model.demo.dense_gguf import pin, random_weights, write_gguf


@dataclass(frozen=True)
class Case:
    pinned: PinnedModel
    wheel: Path


class Interrupter:
    """An Interrupter is a progress report during whose n-th call Ctrl-C arrives."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, what: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("index")
    dense = write_gguf(root / "tiny.gguf", random_weights())
    wheel = root / "tiny_package-1.0-py3-none-any.whl"
    return Case(pin(dense, wheel), wheel)


def quiet(what: str, done: int, total: int) -> None:
    """Reports nothing."""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directory_is_versioned() -> None:
    path = default_directory(Path("/home/me/.cache"))
    assert path.parent == Path("/home/me/.cache/octavo")
    assert path.name.endswith("-" + upcycle.VERSION)


def test_build_leaves_the_model_and_nothing_else(case: Case, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "tiny"
    assert not is_complete(target)
    assert build(target, case.wheel, quiet, case.pinned) == target
    assert is_complete(target)
    assert {path.name for path in target.parent.iterdir()} == {"tiny", ".tiny.lock"}
    names = {path.name for path in target.iterdir()}
    assert names == {*upcycle.FILES, *(f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3))}
    assert "weights were modified" in (target / "NOTICE").read_text()
    assert "Apache License" in (target / "LICENSE").read_text()


def test_second_build_does_nothing(case: Case, tmp_path: Path) -> None:
    target = build(tmp_path / "tiny", case.wheel, quiet, case.pinned)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    build(target, tmp_path / "no such file", Interrupter(1), case.pinned)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_interrupted_anywhere_it_leaves_no_target_and_goes_on_later(case: Case, tmp_path: Path) -> None:
    expected = contents(build(tmp_path / "whole", case.wheel, quiet, case.pinned))
    reports: list[str] = []
    build(tmp_path / "counted", case.wheel, lambda what, done, total: reports.append(what), case.pinned)
    for at in range(1, len(reports) + 1, 7):
        target = tmp_path / f"stopped-{at}"
        with pytest.raises(KeyboardInterrupt):
            build(target, case.wheel, Interrupter(at), case.pinned)
        assert not target.exists()
        assert contents(build(target, case.wheel, quiet, case.pinned)) == expected


def test_finished_shards_are_kept_and_torn_ones_are_not(case: Case, tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    reports: list[str] = []
    build(tmp_path / "counted", case.wheel, lambda what, done, total: reports.append(what), case.pinned)
    with pytest.raises(KeyboardInterrupt):
        build(target, case.wheel, Interrupter(len(reports)), case.pinned)  # in the middle of the last shard
    first, second = sorted((tmp_path / ".tiny.partial").glob("*.safetensors"))
    kept = first.stat().st_ino
    second.write_bytes(second.read_bytes()[:-1])
    build(target, case.wheel, quiet, case.pinned)
    assert (target / first.name).stat().st_ino == kept
    assert contents(target) == contents(tmp_path / "counted")


def test_of_concurrent_builds_one_works(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[Path] = []
    convert = upcycle._convert
    monkeypatch.setattr(upcycle, "_convert", lambda gguf, *rest: (conversions.append(gguf), convert(gguf, *rest)))
    target = tmp_path / "tiny"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: build(target, case.wheel, quiet, case.pinned), range(4)))
    assert results == [target] * 4
    assert len(conversions) == 1
    assert is_complete(target)


def test_damaged_directory_is_not_complete(case: Case, tmp_path: Path) -> None:
    target = build(tmp_path / "tiny", case.wheel, quiet, case.pinned)
    for name in contents(target):
        shutil.copytree(target, tmp_path / "copy")
        (tmp_path / "copy" / name).unlink()
        assert not is_complete(tmp_path / "copy"), name
        shutil.rmtree(tmp_path / "copy")


def test_empty_directory_is_used_and_a_full_one_is_left_alone(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert is_complete(build(tmp_path / "empty", case.wheel, quiet, case.pinned))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="in the way"):
        build(tmp_path / "full", case.wheel, quiet, case.pinned)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_too_small_a_disk_is_noticed_first(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(upcycle.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    greedy = replace(case.pinned, disk_bytes=1_600_000_000)
    with pytest.raises(ModelError, match=r"needs 1\.6 GB in .*, where 1\.0 GB are free"):
        build(tmp_path / "tiny", case.wheel, quiet, greedy)


def test_unwritable_cache_is_one_sentence(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written to"):
        build(tmp_path / "file" / "tiny", case.wheel, quiet, case.pinned)
