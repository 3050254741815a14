"""/version: which Octavo this is."""

from server.release import version
from tests.server.client import Client


def test_version() -> None:
    assert Client().get("/version").json() == {"version": version()}
