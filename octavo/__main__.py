"""The console script `octavo`, and `python -m octavo`."""

import sys
from pathlib import Path

PARTS = ("server", "engine", "model")


def main() -> int:
    """Imports nothing before it runs: the engine's process imports this module again, and needs no HTTP."""
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
            f"octavo: {package} has no {' or '.join(lost)} in it. This copy of the repository has lost its symbolic "
            "links. Clone it with git (on Windows, with core.symlinks=true), or copy it with `cp --archive`."
        )


if __name__ == "__main__":
    sys.exit(main())
