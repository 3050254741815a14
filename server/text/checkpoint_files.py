"""Reads the text files of a checkpoint that the server uses, and words what is wrong with one."""

import json
from pathlib import Path
from typing import Any

from octavo.server.http.errors import StartupError


def read_text(path: Path) -> str | None:
    """Returns what is in a file; None where nothing has this name. Raises StartupError for one that cannot be read."""
    if not (path.exists() or path.is_symlink()):
        return None
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not UTF-8 text ({error}); fetch or save it again.") from error
    except OSError as error:
        raise StartupError(f"{path} cannot be read ({error.strerror}); fetch or save it again.") from error
    if text.startswith("\ufeff"):
        raise StartupError(f"{path} begins with a byte order mark; save it as UTF-8 without BOM.")
    return text


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one where there is no file. Raises StartupError."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise StartupError(f"{path} is nested too deeply; fetch or save it again.") from error
    except json.JSONDecodeError as error:
        raise StartupError(f"{path} is not valid JSON ({error}); fetch or save it again.") from error
    except ValueError as error:
        raise StartupError(f"{path} has a number of thousands of digits; fetch or save it again.") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path} does not hold a JSON object; fetch or save it again.")
    return value
