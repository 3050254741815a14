"""/v1/models: the one model that is served, whose name may hold a slash."""

from tests.server.client import MODEL, Client


def test_models() -> None:
    client = Client()
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == MODEL
    assert client.get(f"/v1/models/{MODEL}").json() == model
