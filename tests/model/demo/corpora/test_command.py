"""The command writes one file for each domain, says whether it is what is on record, and prints the table."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from octavo.model.config import ModelError
from octavo.model.demo.corpora import __main__ as command
from octavo.model.demo.corpora.documents import Document
from octavo.model.demo.corpora.packages import Package
from octavo.model.demo.corpora.readers import arithmetic
from octavo.model.demo.corpora.sources import SOURCES, Record, Source, on_record

SUMS = Source("sums", (), "sums", arithmetic.read, most=20)
FORBIDDEN = re.compile(r"GPL|GFDL|NC|SA\b|non-commercial", re.IGNORECASE)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SOURCES", (SUMS,))


def run(out: Path, tokenizer: Path, *more: str) -> int:
    return command.main([str(out), "--tokenizer", str(tokenizer), "--downloads", str(out / "none"), *more])


def test_files_are_the_same_each_time_and_counted(
    small: None, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", tokenizer) == 1
    assert "the text of sums in" in capsys.readouterr().err
    lines = (tmp_path / "a" / "sums.jsonl").read_text("utf-8").splitlines()
    documents = [Document(**json.loads(line)) for line in lines]
    record = Record(**json.loads((tmp_path / "a" / "record.json").read_text("utf-8"))["sums"])
    assert len(documents) == record.documents == 20
    assert record.tokens == sum(len(f"{each.prompt} {each.answer}".split()) for each in documents)
    monkeypatch.setattr(command, "on_record", lambda: {"sums": record})
    assert run(tmp_path / "b", tokenizer) == 0
    assert "is what is on record" in capsys.readouterr().err
    assert (tmp_path / "b" / "sums.jsonl").read_bytes() == (tmp_path / "a" / "sums.jsonl").read_bytes()


def test_text_that_is_kept_apart_is_left_out(small: None, tokenizer: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", tokenizer)
    whole = (tmp_path / "a" / "sums.jsonl").read_text("utf-8").splitlines()
    longest = max((json.loads(line) for line in whole), key=lambda each: len(each["answer"].split()))
    (tmp_path / "apart.txt").write_text(longest["answer"], "utf-8")
    run(tmp_path / "b", tokenizer, "--apart", str(tmp_path / "apart.txt"))
    left = [json.loads(line) for line in (tmp_path / "b" / "sums.jsonl").read_text("utf-8").splitlines()]
    assert len(left) == len(whole)
    assert longest not in left


def test_package_that_cannot_be_had_is_one_sentence(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(package: Package, downloads: Path) -> Path:
        raise ModelError(f"{package.name} cannot be had; check the network.")

    monkeypatch.setattr(command, "obtain", refuse)
    assert run(tmp_path / "a", tokenizer) == 2
    assert "corpora: chitchat-dataset cannot be had; check the network.\n" in capsys.readouterr().err
    assert not list((tmp_path / "a").glob("*.jsonl"))


def test_missing_tokenizer_is_told_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", tmp_path / "none.json") == 2
    assert "run `octavo demo-model`" in capsys.readouterr().err


def test_table_has_a_line_for_each_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert len(lines) == 2 + sum(max(1, len(source.packages)) for source in SOURCES)
    for source in SOURCES:
        for package in source.packages:
            assert sum(f"{package.name} {package.version}" in line and package.sha256 in line for line in lines) == 1


def test_all_domains_are_on_record_and_large_enough() -> None:
    records = on_record()
    assert list(records) == [source.domain for source in SOURCES]
    assert len(records) == 7
    assert all(12 <= record.documents <= source.most for record, source in zip(records.values(), SOURCES, strict=True))


def test_packages_are_pinned_and_free() -> None:
    packages = [package for source in SOURCES for package in source.packages]
    for package in packages:
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        assert package.version in package.file
        assert package.stated
        assert not FORBIDDEN.search(package.licence)
    assert len({package.sha256 for package in packages}) == len(packages)
