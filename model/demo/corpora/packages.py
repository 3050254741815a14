"""Fetches pinned packages with the registries' own clients into the user's cache, and checks their hashes."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from octavo.model.config import ModelError


@dataclass(frozen=True, slots=True)
class Package:
    """A Package is one version of a package, and what allows its use."""

    registry: Literal["PyPI", "npm"]
    name: str
    version: str
    file: str  # name of the archive, as the registry's client saves it
    sha256: str  # of the archive
    licence: str
    stated: str  # where in the archive the licence is stated

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.registry == "PyPI" else f"{self.name}@{self.version}"


def obtain(package: Package, downloads: Path) -> Path:
    """Returns the archive of a package, whose hash is right; it is fetched unless it lies in `downloads`.

    pip and npm fetch it, so that the user's own index, proxy and certificate settings hold.
    Raises ModelError if it cannot be fetched, or is another than the pinned one.
    """
    kept = downloads / package.file
    if kept.is_file() and _sha256(kept) == package.sha256:
        return kept
    downloads.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=downloads) as scratch:
        fetched = Path(scratch) / package.file
        status = _run(_command(package, Path(scratch)), package)
        if status != 0 or not fetched.is_file():
            raise ModelError(
                f"{package.registry} did not give {package.requirement}, see the message above; check the network, "
                f"or put its archive {package.file} into {downloads}."
            )
        if (found := _sha256(fetched)) != package.sha256:
            raise ModelError(
                f"{package.registry} gave a {package.file} with sha256 {found}, and {package.sha256} is pinned; check "
                "your index settings."
            )
        fetched.replace(kept)
    return kept


def _command(package: Package, scratch: Path) -> list[str]:
    if package.registry == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(scratch), package.requirement]
    # With a hash in a file of requirements pip compares before it opens the archive: a source archive runs code then.
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--require-hashes"]
    return [*pip, "--dest", str(scratch), "--requirement", str(wanted)]


def _run(command: list[str], package: Package) -> int:
    """Runs a client and returns its exit status. What it says goes to stderr (2)."""
    try:
        return subprocess.run(command, stdout=2, check=False).returncode
    except FileNotFoundError as error:
        raise ModelError(
            f"{package.requirement} is fetched with {command[0]}, which is not installed; install it, or put the "
            f"archive {package.file} into the folder of downloads."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
