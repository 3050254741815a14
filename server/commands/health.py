"""`octavo health` asks a server whether it takes requests, for the health checks of containers."""

import argparse
import os
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from octavo.server import options
from octavo.server.environment import from_environment
from octavo.server.http.errors import StartupError
from octavo.server.lifecycle import url_of

TIMEOUT = 4  # seconds


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "health",
        help="ask a server whether it takes requests",
        description="Asks a server whether it takes requests; the status is 0 if it does, and 1 if not. Without URL, "
        "it is the server that has written its URL to OCTAVO_ADDRESS_FILE, or the one at OCTAVO_HOST and OCTAVO_PORT.",
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="such as http://127.0.0.1:8000")
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks, prints the answer, and returns the status. Raises StartupError for a URL that is none."""
    url = arguments.url or _known_url()
    try:
        where = urlsplit(url)
        connection = _connection(where)
    except (ValueError, HTTPException) as error:
        raise StartupError(f"{url[:200]!r} is no URL such as http://127.0.0.1:8000.") from error
    try:
        connection.request("GET", f"{where.path.rstrip('/')}/health")
        answer = connection.getresponse()
        text = answer.read(1000).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        print(f"octavo: nothing answers at {url} ({error})", file=sys.stderr)
        return 1
    print(text)
    return 0 if answer.status == 200 else 1


def _connection(where: SplitResult) -> HTTPConnection:
    """Opens nothing yet. Raises ValueError or HTTPException."""
    if where.scheme != "http" or not where.hostname:
        raise ValueError
    return HTTPConnection(where.hostname, where.port or 80, timeout=TIMEOUT)


def _known_url() -> str:
    """Returns the URL that a server has left, or the one at which the environment lets it listen."""
    where = options.DEFAULTS | from_environment(os.environ)
    try:
        if where["address_file"] and (url := Path(where["address_file"]).read_text("utf-8").strip()):
            return url
    except (OSError, ValueError):
        pass  # The server has not come so far, or could not write there.
    return url_of(where["host"], where["port"])
