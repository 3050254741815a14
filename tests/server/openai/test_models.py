"""Tests /v1/models: the model is listed under each of its names, which may hold slashes."""

from datetime import datetime

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client


def test_models() -> None:
    client = Client()
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == MODEL
    assert client.get(f"/v1/models/{MODEL}").json() == model
    started = datetime.fromisoformat(model["created_at"])
    assert (int(started.timestamp()), model["display_name"]) == (model["created"], MODEL)


def test_every_name_is_listed_and_serves() -> None:
    client = Client(config=ServerConfig(("first", "org/second")))
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["first", "org/second"]
    for model in models:
        assert client.get(f"/v1/models/{model['id']}").json() == model
        assert (
            client.chat(model=model["id"]).json()["model"] == model["id"]
        )  # the answer has the name that was asked for
        assert client.chat(model=model["id"], stream=True).events()[0]["model"] == model["id"]
    refused = client.chat(model="third")
    assert refused.status == 404
    assert "'first', 'org/second'" in refused.error["message"]
