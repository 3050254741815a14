"""`octavo` and `python -m server`."""

import sys


def main() -> int:
    from server.cli import main  # not at the top: the engine's process imports this module again, and needs no HTTP

    return main()


if __name__ == "__main__":
    sys.exit(main())
