"""`octavo prepare` prints the path of the tile file, finds it the next time, and refuses in a sentence."""

from pathlib import Path

import pytest

from octavo.server import cli, options
from octavo.server.commands import checkpoint
from tests.model.gguf.writing import VOCABULARY, written
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for option in options.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # This is no process of its own.


def test_it_writes_once_and_prints_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    for told in ("preparing weights: 100 %", "is there already"):
        assert cli.main(["prepare", str(directory), "--quantization", "int4", "--threads", "1"]) == 0
        out, err = capsys.readouterr()
        assert out == f"{directory}/octavo-int4.tiles\n" and told in err


def test_variables_count_and_a_directory_is_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_MODEL", str(write_tiny_checkpoint(tmp_path / "tiny")))
    monkeypatch.setenv("OCTAVO_QUANTIZATION", "int8")
    out = tmp_path / "some" / "where"
    assert cli.main(["prepare", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}/octavo-int8.tiles\n"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "octavo-int8.tiles"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--quantization", "none", "--dtype", "float16"], "cannot be prepared, since FBGEMM"),
        (["--quantization", "fp8"], "use --quantization int8"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    assert cli.main(["prepare", str(directory), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("octavo: ") and sentence in err and err.count("\n") == 1


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    (directory / "model.safetensors").unlink()
    assert cli.main(["prepare", str(directory), "--quantization", "int8"]) == 2
    assert "has no weights" in capsys.readouterr().err


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checkpoint.user_cache() == str(tmp_path / "cache" / "octavo")

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    assert checkpoint.user_cache() is None


def gguf_file(directory: Path, **metadata: object) -> Path:
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 64}
    return written(write_tiny_checkpoint(directory, **sizes), lambda name: "Q8_0", **metadata)


def test_a_gguf_file_is_prepared_in_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_file(tmp_path / "tiny")
    for told in ("preparing weights: 100 %", "is there already"):
        assert cli.main(["prepare", str(file)]) == 0
        out, err = capsys.readouterr()
        made = Path(out.strip())
        assert made.name == "octavo-kept-int8.tiles" and made.is_file() and told in err
    assert made.parent.parent == tmp_path / "cache" / "octavo" / "gguf" and made.parent.name.startswith("tiny-")


def test_a_gguf_file_may_have_another_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_file(tmp_path / "tiny", **{"tokenizer.ggml.pre": "something new"})
    order = ["prepare", str(file)]
    assert cli.main(order) == 2
    err = capsys.readouterr().err
    assert "pre is 'something new'" in err and "--tokenizer DIRECTORY" in err and err.count("\n") == 1
    plain = gguf_file(tmp_path / "plain")
    assert cli.main(["prepare", str(plain)]) == 0
    own = Path(capsys.readouterr().out.strip()).parent
    monkeypatch.setenv("OCTAVO_TOKENIZER", str(own))
    assert cli.main(order) == 0
    monkeypatch.delenv("OCTAVO_TOKENIZER")
    assert cli.main(order) == 0
    assert cli.main(["prepare", str(write_tiny_checkpoint(tmp_path / "other")), "--tokenizer", str(own)]) == 2
    assert "--tokenizer belongs to a GGUF file" in capsys.readouterr().err


def test_a_damaged_gguf_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_file(tmp_path / "tiny")
    file.write_bytes(file.read_bytes()[:-4096])
    for command in ("prepare", "serve"):
        assert cli.main([command, str(file), *(["--port", "0"] if command == "serve" else [])]) == 2
        err = capsys.readouterr().err
        assert "is cut short" in err and err.count("\n") == 1


def test_a_gguf_file_needs_a_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_file(tmp_path / "tiny")
    monkeypatch.setattr(checkpoint, "user_cache", lambda: None)
    assert cli.main(["prepare", str(file)]) == 2
    assert "set XDG_CACHE_HOME or HOME" in capsys.readouterr().err
