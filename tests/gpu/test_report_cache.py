"""The cache of reports computes again when a source or a setting changes or its file is damaged, and only then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.report_cache import kept, key_of

Compute = Callable[[], str]


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(path.name)
    return paths


class Counted:
    """Computes "report 1", then "report 2" and so on."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return f"report {self.times}"


def starts_well(report: str) -> bool:
    return report.startswith("report")


def test_a_report_is_computed_once(tmp_path: Path) -> None:
    compute = Counted()
    reports = [kept(tmp_path / "cache", "key", compute, starts_well) for _ in range(3)]
    assert reports == ["report 1"] * 3


def test_another_key_computes_again_and_takes_the_place_of_the_first(tmp_path: Path) -> None:
    compute = Counted()
    assert [kept(tmp_path, key, compute, starts_well) for key in ("one", "other")] == ["report 1", "report 2"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["other.json"]


def test_the_key_depends_on_names_contents_and_settings(tmp_path: Path, sources: list[Path]) -> None:
    keys = [key_of(tmp_path, sources, ["triton 3"]), key_of(tmp_path, sources, ["triton 4"])]
    sources[0].write_text("changed")
    keys.append(key_of(tmp_path, sources, ["triton 3"]))
    keys.append(key_of(tmp_path, [sources[0], sources[1].rename(tmp_path / "c.py")], ["triton 3"]))
    assert len(set(keys)) == 4


def test_the_key_depends_on_no_order_of_the_sources(tmp_path: Path, sources: list[Path]) -> None:
    assert key_of(tmp_path, sources, []) == key_of(tmp_path, reversed(sources), [])


@pytest.mark.parametrize("damage", [b"", b"repo", b"\xff\xfe"], ids=["empty", "half", "not text"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "key.json").write_bytes(damage)
    assert kept(tmp_path, "key", Counted(), starts_well) == "report 1"
    assert (tmp_path / "key.json").read_text() == "report 1"


def test_a_report_that_is_not_good_is_returned_and_not_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, "key", lambda: "failure", starts_well) == "failure"
    assert kept(tmp_path, "key", Counted(), starts_well) == "report 1"


def test_a_directory_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    compute = Counted()
    assert [kept(tmp_path / "file" / "cache", "key", compute, starts_well) for _ in range(2)] == [
        "report 1",
        "report 2",
    ]
