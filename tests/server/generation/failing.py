"""Holds a function that a process is asked to run. It imports little: the process has little memory for it."""

import os
import time
from pathlib import Path

from octavo.server.generation.texts import Texts
from octavo.server.http.errors import InvalidRequest


def fails(texts: Texts, body: bytes, how: str) -> str:
    """Runs in the process."""
    match how:
        case "refuse":
            raise InvalidRequest("{param} is wrong: {reason}", "field", reason=ValueError("so"))
        case "crash":
            raise LookupError("a secret detail")
        case "die":
            os._exit(3)
        case "hang":
            Path(body.decode()).touch()
            time.sleep(600)
        case "fill":
            return str(len(bytearray(2**40)))
    return str(os.getpid())
