"""Finds the checkpoint that a subcommand is given, and the place where the user's cache is."""

from pathlib import Path

from octavo.server.commands import demo_model
from octavo.server.http.errors import StartupError


def find(model: str | None, tokenizer: str | None = None) -> tuple[Path, str]:
    """Returns the directory of the checkpoint, and what clients call it by default; downloads or builds it first.

    `tokenizer` is a directory with the tokenizer of a GGUF file. Raises ModelError and StartupError.
    """
    from octavo.model.loading import hub, mistaken

    if model and (path := _gguf_file(model)):
        mistaken.check_file(path)
        return _made_for(path, tokenizer)
    if tokenizer:
        raise StartupError("--tokenizer belongs to a GGUF file, and other checkpoints bring their own: leave it out.")
    if model:
        directory = hub.resolve(model)
        mistaken.check_directory(directory)
        return directory, directory.resolve().name if Path(model).is_dir() else model
    directory = demo_model.build(demo_model.default_directory(), source=None)
    return directory, directory.name


def user_cache() -> str | None:
    """Returns the directory in the user's cache that is Octavo's; None for a user without a home."""
    cache = demo_model.cache()
    return None if cache is None else str(cache / "octavo")


def _gguf_file(model: str) -> Path | None:
    """Returns the path of a GGUF file; None for anything else."""
    from octavo.model.gguf.file import is_gguf

    try:
        path = Path(model).expanduser()
        return path if path.is_file() and is_gguf(path) else None
    except (OSError, RuntimeError):  # It may not be looked at, is no name of a file, or is of no such user.
        return None


def _made_for(path: Path, tokenizer: str | None) -> tuple[Path, str]:
    """Returns the directory that serves a GGUF file, and the model's name."""
    from octavo.model.gguf.companion import Order, directory_for

    cache = user_cache()
    if cache is None:
        raise StartupError(
            "What a GGUF file is served with is kept in the user's cache, and this user has no home directory: "
            "set XDG_CACHE_HOME or HOME to a directory that can be written."
        )
    order = Order(path, None if tokenizer is None else Path(tokenizer).expanduser())
    return directory_for(order, Path(cache)), order.name
