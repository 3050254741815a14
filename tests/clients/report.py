"""Tells the scripts which server they talk to, runs their checks, and prints what came of them."""

import sys
import traceback
from collections.abc import Callable

URL, MODEL = sys.argv[1:3]  # the server's URL, without /v1
API = f"{URL}/v1"
KEY = "none"
QUESTION = "What is an octavo?"
LIMIT = 24  # tokens; the model is slow on two cores, and its answers are not judged


def run(*checks: Callable[[], None]) -> None:
    """Runs every check, prints one line for each, and ends the script."""
    failed = [check.__name__ for check in checks if not _passes(check)]
    raise SystemExit(len(failed))


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception:
        print(f"  failed  {check.__name__}\n{traceback.format_exc()}", flush=True)
        return False
    print(f"  ok      {check.__name__}", flush=True)
    return True
