"""Starts the command line, for the console script `octavo` and for `python -m octavo`."""

import sys
from pathlib import Path

PARTS = ("server", "engine", "model")


def main() -> int:
    """Runs the command line and returns its exit status.

    Nothing is imported before it runs: the engine's process imports this module again, and needs no HTTP.
    """
    check_links(Path(__file__).parent)
    try:
        from octavo.server.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


def check_links(package: Path) -> None:
    """Ends the process with a sentence if a copy of the repository has lost the symbolic links in this folder."""
    lost = [part for part in PARTS if not (package / part / "__init__.py").is_file()]
    if lost:
        raise SystemExit(
            f"octavo: {package} has no {' and no '.join(lost)} in it, because this copy of the repository has lost its "
            "symbolic links: clone it with git (on Windows, with core.symlinks=true), or copy it with `cp --archive`."
        )


if __name__ == "__main__":
    sys.exit(main())
