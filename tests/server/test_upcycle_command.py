"""`octavo upcycle` ends in a model that is served, goes on after kill -9, and refuses in a sentence."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.model.config import ModelConfig
from octavo.server import cli
from octavo.server.commands import upcycle
from octavo.server.text.tokenizer import Tokenizer
from tests.server.vocab import byte_level
from tests.tiny import write_tiny_checkpoint

FLAGS = ["--steps", "3", "--length", "16", "--rows", "2", "--rank", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # This is no process of its own.


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    directory = write_tiny_checkpoint(
        tmp_path / "dense", model_type="llama", vocab_size=259, max_position_embeddings=64
    )
    byte_level(template=None).backend.save(str(directory / "tokenizer.json"))
    (directory / "LICENSE").write_text("mine")
    return directory


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Writes two files of 30 paragraphs each, one of letters and one of numbers."""
    for name, alphabet in {"letters": "abcdef", "numbers": "012345"}.items():
        draw = random.Random(name)
        paragraphs = ["".join(draw.choices(alphabet, k=30)) for _ in range(30)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(paragraphs))
    return tmp_path


def order(dense: Path, text: Path, *more: str) -> list[str]:
    domains = [f"--domain={name}={text / name}.txt" for name in ("letters", "numbers")]
    return ["upcycle", str(dense), "--out", str(text / "sparse"), *domains, *FLAGS, *more]


def test_it_ends_in_a_model_and_a_report(dense: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(order(dense, text)) == 0
    out, err = capsys.readouterr()
    assert out == f"{text / 'sparse'}\n"
    assert "expert letters: 100 %, loss " in err and " tokens/s, " in err and "measuring: 100 %" in err
    assert f"serve the model with: octavo serve {text / 'sparse'}" in err
    config = ModelConfig.from_pretrained(text / "sparse")
    assert (config.num_experts, config.num_experts_per_tok) == (3, 2)
    assert Tokenizer.from_directory(text / "sparse").encode("ab", True) == (1, 100, 101)
    assert (text / "sparse" / "LICENSE").read_text() == "mine"
    assert "<svg" in (text / "sparse" / "report.html").read_text()
    assert cli.main(order(dense, text)) == 2, "nothing is overwritten"


def test_killed_by_kill_9_it_goes_on(dense: Path, text: Path) -> None:
    whole = order(dense, text)
    whole[3] = str(text / "whole")
    assert cli.main(whole) == 0
    command = [sys.executable, "-m", "octavo", *order(dense, text)]
    work = text / ".sparse.training"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None and not (work / "expert-1.done").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (text / "sparse").exists() and (work / "expert-1.done").exists()
    assert cli.main(order(dense, text)) == 0
    assert not work.exists()
    for path in (text / "whole").iterdir():
        assert (text / "sparse" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--domain", "letters=x.txt"], "The domain letters is given twice"),
        (["--domain", "more={absent}"], "There is no file or folder"),
        (["--domain", "more={empty}"], "The domain more has no text in"),
        (["--domain", "more={short}"], "The domain more has 2 different documents of 8 tokens or more, and 12 are"),
        (["--experts", "2"], "2 domains and the original need 3 experts"),
        (["--top-k", "4"], "--top-k is 4"),
        (["--length", "65"], "--length 65 is longer than the 64 positions"),
        (["--keep", "songs"], "--keep names the domain songs"),
    ],
)
def test_mistakes_are_sentences(
    dense: Path, text: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    (text / "empty").write_text("\n")
    (text / "short").write_text("A first paragraph.\n\nA second one.")
    given = [each.format(absent=text / "absent", empty=text / "empty", short=text / "short") for each in more]
    assert cli.main(order(dense, text, *given)) == 2
    err = capsys.readouterr().err
    assert err.startswith("octavo: ") and sentence in err and err.count("\n") == 1
    assert not (text / "sparse").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x"], "There is nothing to train on: give --domain NAME=PATH"),
        (["--domain", "a=b"], "give --out DIRECTORY"),
    ],
)
def test_what_is_missing_is_asked_for(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["upcycle", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["law", "law=", "=x", "a b=x", "law=,"])
def test_a_domain_has_a_name_and_paths(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["upcycle", "--out", "x", "--domain", wrong])
    assert "is no domain such as law=contracts/,statutes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--experts=1", "--top-k=0", "--minutes=0", "--steps=x", "--learning-rate=nan"])
def test_numbers_have_bounds(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["upcycle", flag])
    assert "number from" in capsys.readouterr().err


def test_an_unknown_family_is_refused_before_text_is_read(
    dense: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (dense / "config.json").read_text()
    (text / "letters.txt").write_text("")
    for family, words in {"qwen2": "have biases", "gpt2": "model_type is 'gpt2'", "mixtral": "sparse already"}.items():
        (dense / "config.json").write_text(config.replace('"llama"', f'"{family}"'))
        assert cli.main(order(dense, text)) == 2
        assert words in capsys.readouterr().err


def test_little_memory_is_refused(
    dense: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcycle.machine, "available_memory", lambda: 1000)
    assert cli.main(order(dense, text)) == 2
    assert "GB of memory, and 0.0 GB are free: lower --rows or --length" in capsys.readouterr().err
