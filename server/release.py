"""Which Octavo this is, as its installation says."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of


def version() -> str:
    try:
        return version_of("octavo")
    except PackageNotFoundError:
        return "(not installed: run from its sources)"
