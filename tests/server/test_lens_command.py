"""`octavo lens` counts the experts of each domain's prompts, shows them beside chance, and refuses in a sentence."""

import csv
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from struct import pack

import numpy as np
import pytest

from octavo.engine.api import (
    EngineStats,
    ExpertUse,
    FinishReason,
    Output,
    Ready,
    ReportProgress,
    Request,
    StepOutputs,
)
from octavo.engine.config import EngineConfig
from octavo.server import cli, options
from tests.server.fake import SHAPE, SPARSE
from tests.server.vocab import byte_level
from tests.tiny import write_tiny_checkpoint

FEWEST = 2  # sequences that the engine of these tests takes at once


class Reader:
    """A Reader is an engine that sends all tokens of a domain to the experts that its first letter names."""

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()

    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, request: Request) -> Output | None:
        assert request.params.max_tokens == 0 and len(self.waiting) < FEWEST
        if len(request.prompt) == 7:
            return Output(request.id, finish_reason=FinishReason.ERROR, error="seven is too many.")
        self.waiting.append(request)
        return None

    def abort(self, request_id: str) -> Output | None:
        raise AssertionError(request_id)

    def step(self) -> StepOutputs:
        if not self.waiting:
            return StepOutputs((), EngineStats())
        request = self.waiting.popleft()
        tokens, first = len(request.prompt), {"c": 0, "l": 2}[request.params.topic[0]]
        counts = [tokens if expert in (first, first + 1) else 0 for expert in range(4)] + [tokens, tokens, 0, 0]
        use = ExpertUse(request.params.topic, tokens, pack("<8q", *counts), pack("<2q", tokens - 1, tokens - 1))
        return StepOutputs((Output(request.id, finish_reason=FinishReason.LENGTH),), EngineStats(), (use,))


def build(config: EngineConfig, report: ReportProgress) -> tuple[Reader, Ready]:
    assert not config.enable_prefix_caching, "what is cached is not counted"
    return Reader(), replace(SPARSE, max_num_seqs=FEWEST)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for option in options.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # This is no process of its own.
    monkeypatch.setattr("octavo.engine.startup.build.build", build)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    byte_level().backend.save(str(directory / "tokenizer.json"))
    return directory


def written(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


PROMPTS = (
    {"domain": "code", "prompt": "abc"},
    {"domain": "law", "prompt": "abcdefgh"},
    {"domain": "code", "prompt": "abcd", "more": 1},
)


def test_the_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lens", str(model), written(tmp_path, *PROMPTS), "--layer", "0"]) == 0
    head, code, law, chance = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["topic", "tokens", "entropy", "by", "chance", *["e0", "%", "e1", "%", "e2", "%", "e3", "%"]]
    assert code == ["code", "9", "0.50", "0.96", "50.0", "50.0", "0.0", "0.0"]
    assert law == ["law", "9", "0.50", "0.96", "0.0", "0.0", "50.0", "50.0"]
    assert chance == ["chance", *["25.0"] * 4]


def test_the_mean_of_all_layers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lens", str(model), written(tmp_path, *PROMPTS)]) == 0
    law = capsys.readouterr().out.splitlines()[2].split()
    assert law[4:] == ["25.0", "25.0", "25.0", "25.0"]


def test_files(model: Path, tmp_path: Path) -> None:
    names = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "npz")}
    flags = [part for kind, path in names.items() for part in (f"--{kind}", str(path))]
    assert cli.main(["lens", str(model), written(tmp_path, *PROMPTS), *flags]) == 0
    answer = json.loads(names["json"].read_text())
    assert {each["topic"]: each["tokens"] for each in answer["topics"]} == {"code": 9, "law": 9}
    rows = list(csv.DictReader(names["csv"].read_text().splitlines()))
    assert len(rows) == 2 * len(SHAPE.layers) * SHAPE.experts
    assert [(row["count"], row["share"]) for row in rows[:3]] == [
        ("9", "0.500000"),
        ("9", "0.500000"),
        ("0", "0.000000"),
    ]
    assert {row["layer"] for row in rows} == {"0", "2"}
    assert np.load(names["npz"])["tokens"] == 18


def test_a_plot(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    assert cli.main(["lens", str(model), written(tmp_path, *PROMPTS), "--plot", str(path)]) == 0
    assert "<svg" in path.read_text()


MISTAKES: list[tuple[Sequence[object], Sequence[str], str]] = [
    ((), (), "has no prompts"),
    (("{",), (), "Line 1 of"),
    (({"domain": "law"},), (), "should have a domain"),
    (({"domain": "", "prompt": "x"},), (), "should have a domain"),
    (({"domain": "x" * 65, "prompt": "x"},), (), "at most 64 characters"),
    (({"domain": "law", "prompt": ""},), (), "and a prompt"),
    (({"domain": "law", "prompt": "x"}, [1]), (), "Line 3 of"),
    ([{"domain": f"l{n}", "prompt": "x"} for n in range(65)], (), "65 domains"),
    (({"domain": "law", "prompt": "x" * 300},), (), "The prompt in line 1 has 301 tokens"),
    (({"domain": "law", "prompt": "x" * 6},), (), "The prompt in line 1 could not be computed: seven is too many."),
    (PROMPTS, ("--layer", "7"), "--layer 7 has no experts"),
    (PROMPTS, ("--json", "/nowhere/x.json"), "Cannot write /nowhere/x.json"),
    (PROMPTS, ("--plot", "x.doc"), "should end with"),
]


@pytest.mark.parametrize(("lines", "flags", "sentence"), MISTAKES)
def test_mistakes_are_told_in_a_sentence(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: Sequence[object],
    flags: Sequence[str],
    sentence: str,
) -> None:
    assert cli.main(["lens", str(model), written(tmp_path, *lines), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("octavo: ") and sentence in err and err.count("\n") == 1


def test_a_file_that_is_not_there(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lens", str(model), str(tmp_path / "none.jsonl")]) == 2
    assert "Cannot read" in capsys.readouterr().err


def test_a_dense_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_checkpoint(tmp_path / "dense", model_type="mistral")
    assert cli.main(["lens", str(directory), written(tmp_path, *PROMPTS)]) == 2
    assert "is a dense model" in capsys.readouterr().err
