"""/version tells the version of Octavo."""

from octavo import __version__
from tests.server.client import Client


def test_version() -> None:
    assert Client().get("/version").json() == {"version": __version__}
