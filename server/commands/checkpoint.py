"""Finds the checkpoint that a subcommand is given, and the place where the user's cache is."""

from pathlib import Path

from octavo.server.commands import demo_model


def find(model: str | None) -> tuple[Path, str]:
    """Returns the directory of the checkpoint, and what clients call it by default; downloads or builds it first."""
    from octavo.model.loading import hub

    if model:
        directory = hub.resolve(model)
        return directory, directory.resolve().name if Path(model).is_dir() else model
    directory = demo_model.build(demo_model.default_directory(), source=None)
    return directory, directory.name


def user_cache() -> str | None:
    """Returns the directory in the user's cache that is Octavo's; None for a user without a home."""
    cache = demo_model.cache()
    return None if cache is None else str(cache / "octavo")
