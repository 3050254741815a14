"""Runs the command `octavo`: it finds the subcommand, and turns errors into one sentence."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from octavo import __version__
from octavo.engine.startup.shortage import shortage
from octavo.model.config import ModelError
from octavo.server.commands import demo_model, health, lens, prepare, serve, train, upcycle
from octavo.server.http.errors import StartupError

COMMANDS = (serve, prepare, upcycle, train, lens, demo_model, health)
USAGE_ERROR = 2


class _Formatter(argparse.HelpFormatter):
    """Leaves the flags so much room that most of them take one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence, not under a screenful of usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"octavo: {message}; `{self.prog} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand. Returns the exit status, which is 2 for a mistake that the user can repair."""
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:  # argparse itself would point to the help of `octavo`, which lists no flag of a subcommand
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = parsed.command(parsed)
    except (StartupError, ModelError) as error:
        sentence: str | None = str(error)
    except Exception as error:
        sentence = shortage(error)
        if sentence is None:
            raise
    else:
        return status
    print(f"octavo: {sentence}", file=sys.stderr)
    return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="octavo", description="An inference server for Mixtral-style sparse models.")
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
