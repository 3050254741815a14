"""The commands print what they should, and one sentence for each mistake that is found without the engine."""

import json
import logging
import multiprocessing.process
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.server import cli, options
from octavo.server.commands import serve
from tests.e2e.harness import write_tokenizer
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def harmless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the command from changing the signal handlers, the log and the environment of the tests' own process."""
    monkeypatch.setattr(serve, "_on_stop_signals", lambda leave: None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    for option in options.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv("OCTAVO_MODEL", raising=False)
    handlers, level = logging.root.handlers[:], logging.getLogger("octavo.server").level
    yield
    logging.root.handlers[:] = handlers
    logging.getLogger("octavo.server").setLevel(level)


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the command's complaint, which is alone on stderr and ends with status 2."""
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else -1
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err.removeprefix("octavo: ").rstrip()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_tiny_checkpoint(tmp_path / "tiny", vocab_size=264)
    write_tokenizer(directory)
    return directory


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("config.json"), "has no config.json"),
        (write("config.json", "{"), "config.json"),
        (write("config.json", json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})), "gpt2"),
        (write("generation_config.json", "{"), "generation_config.json"),
        (write("config.json", 100_000 * "["), "config.json"),
        (write("generation_config.json", 100_000 * "["), "generation_config.json"),
        (write("tokenizer_config.json", 100_000 * "["), "tokenizer_config.json"),
        (write("generation_config.json", '{"temperature": "hot"}'), "temperature is 'hot'"),
        (remove("tokenizer.json"), "has no tokenizer.json"),
        (write("tokenizer.json", "{}"), "not a readable tokenizer"),
        (write("tokenizer_config.json", '{"chat_template": "{% if %}"}'), "template"),
        (write("generation_config.json", '{"eos_token_id": [2, 259]}'), "eos_token_id 259 is beyond the 259 tokens"),
    ],
    ids=[
        "no config",
        "broken config",
        "another model",
        "broken generation config",
        "deep config",
        "deep generation config",
        "deep tokenizer config",
        "wrong generation config",
        "no tokenizer",
        "broken tokenizer",
        "broken template",
        "an end that cannot be sampled",
    ],
)
def test_a_checkpoint_that_cannot_be_served(
    model: Path,
    spoil: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command itself finds the mistake: there is no engine's process yet."""
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda process: pytest.fail("has started"))
    spoil(model)
    assert words in sentence(capsys, "serve", str(model), "--port", "0")


def test_a_context_beyond_the_models_is_refused_before_there_is_an_engine(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda process: pytest.fail("has started"))
    said = sentence(capsys, "serve", str(model), "--port", "0", "--max-model-len", "513")
    assert said.startswith("--max-model-len 513 is beyond the 512 positions")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("server",), "invalid choice: 'server'"),
        (("serve", "/no/such/directory", "--port", "0"), "There is no file or directory /no/such/directory"),
        (("serve", 300 * "x", "--port", "0"), "cannot be looked up (File name too long)"),
        (("serve", "~nobody-of-this-name/model", "--port", "0"), "cannot be looked up (Could not determine home"),
        (("serve", "--dtype", "int3"), "'int3' is not one of auto, float32, bfloat16, float16"),
        (("serve", "--port", "99999"), "--port: '99999' is not a whole number from 0 to 65535"),
        (("serve", "--block-size", "1" + 30 * "0"), "'10000"),
        (("serve", "--kv-cache-memory", 400 * "9" + "T"), "is not a size"),
        (("serve", "model", "--host", 70 * "ü", "--port", "0"), "Cannot listen on"),
        (("serve", "--max-model", "5"), "unrecognized arguments: --max-model; `octavo serve --help` lists"),
        (("serve", "model", "another"), "unrecognized arguments: another; `octavo serve --help` lists"),
        (("demo-model", "--from-file", "/no/such/file", "--output", "{}/demo"), "/no/such/file"),
    ],
)
def test_a_command_that_cannot_be_obeyed(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in sentence(capsys, *(argument.format(tmp_path) for argument in arguments))


def test_memory_that_runs_out_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(serve, "_configure_logging", fail)
    assert sentence(capsys, "serve", "model").startswith("Memory ran out: raise the limit (ulimit -v")


def test_the_url_is_written_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Health checks read it, also with a port that the system has chosen."""
    file = tmp_path / "url"
    assert "no file or directory" in sentence(capsys, "serve", "/nowhere", "--port", "0", "--address-file", str(file))
    assert file.read_text().startswith("http://127.0.0.1:") and file.read_text().endswith("\n")
    cli.main(["serve", "/nowhere", "--port", "0", "--address-file", str(tmp_path / "no" / "directory")])
    assert "There is no file or directory /nowhere" in capsys.readouterr().err


def test_a_working_directory_that_is_gone_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "There is no file or directory /nowhere" in sentence(capsys, "serve", "/nowhere", "--port", "0")
    assert os.getcwd() == "/"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_default_model_needs_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts for nothing
    for command in (("serve", "--port", "0"), ("demo-model",)):
        assert "set XDG_CACHE_HOME or HOME to a directory" in sentence(capsys, *command)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "cannot be written to" in sentence(capsys, "demo-model")


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OCTAVO_PORT", "eight thousand")
    assert "The environment variable OCTAVO_PORT is wrong" in sentence(capsys, "serve", "model")


@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_and_tells_every_flag(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    assert all(f"  --{option.flag}" in text for option in options.OPTIONS)
    assert "MISSING" not in text
    assert all(title in text for title in options.GROUPS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("octavo ")
