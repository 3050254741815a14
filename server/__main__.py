"""`octavo` and `python -m server`."""

import sys


def main() -> int:
    """Imports nothing before it runs: the engine's process imports this module again, and needs no HTTP."""
    try:
        from server.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
