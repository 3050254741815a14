"""`octavo prepare` writes a checkpoint's weights once in the form in which a CPU computes with them."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from octavo.engine.api import Progress
from octavo.server import options
from octavo.server.commands import checkpoint
from octavo.server.environment import from_environment

FLAGS = ("tokenizer", "quantization", "dtype", "threads", "verify")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "prepare",
        usage="octavo prepare [MODEL] [flags]",
        help="quantise a checkpoint once, so that servers on a CPU start at once and share its memory",
        description="Writes a tile file: the weights of a checkpoint as a CPU computes with them. It lies beside the "
        "checkpoint or, where that cannot be written, in the user's cache; `octavo serve MODEL` with the same flags "
        "finds and maps it. If this is interrupted, the next run goes on where it ended.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIRECTORY",
        help="write it there, with all else that is served, so that `octavo serve DIRECTORY` needs no checkpoint",
    )
    options.add_some(parser, FLAGS)
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file unless it is there, and prints its path."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    given = from_environment(os.environ, vars(arguments)) | vars(arguments)
    directory, name = checkpoint.find(given.get("model"), given.get("tokenizer"))
    config, _ = options.configure(given | {"cache": checkpoint.user_cache()}, str(directory), name)
    from octavo.engine.startup.prepare import prepare  # This loads torch.
    from octavo.server.console import ProgressLine

    line = ProgressLine(sys.stderr)

    def report(progress: Progress) -> None:
        line.show(progress.what, progress.done, progress.total)

    try:
        prepared = prepare(config, arguments.out, report)
    finally:
        line.close()
    if prepared.was_there:
        print("octavo: the tile file is there already, and its checkpoint is still the same", file=sys.stderr)
    print(prepared.path)
    return 0


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process with the status that a shell gives a signal; what is written so far stays for the next run."""
    os._exit(128 + number)
