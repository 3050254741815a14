"""What the scripts share: the server they talk to, and how their checks are run and told."""

import sys
import traceback
from collections.abc import Callable

URL, MODEL = sys.argv[1:3]  # the URL is the server's, without /v1
API = f"{URL}/v1"
KEY = "none"
QUESTION = "What is an octavo?"
LIMIT = 24  # tokens: the model is slow on two cores, and what it says is not judged


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
