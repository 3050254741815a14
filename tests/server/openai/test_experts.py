"""/v1/experts tells which experts serve: counts, entropy and chance, in all, of late, and by topic."""

import io
from collections.abc import Sequence
from dataclasses import replace
from struct import pack
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.engine.api import ExpertUse
from octavo.engine.client import Loading
from octavo.server.config import ServerConfig
from octavo.server.experts.record import MAX_TOPIC_LENGTH, MAX_TOPICS, OTHER
from tests.server.client import MODEL, Client
from tests.server.fake import READY, SHAPE, SPARSE, FakeEngineClient


def client(**config: Any) -> Client:
    return Client(FakeEngineClient(state=SPARSE), config=ServerConfig((MODEL,), **config))


def use(topic: str, tokens: int, counts: Sequence[int], repeats: Sequence[int] = (0, 0)) -> ExpertUse:
    return ExpertUse(topic, tokens, pack(f"<{len(counts)}q", *counts), pack(f"<{len(repeats)}q", *repeats))


EVEN, ONE_SIDED = (5, 5, 5, 5, 10, 10, 0, 0), (4, 0, 0, 4, 0, 4, 4, 0)


def test_counts_in_all_and_by_topic() -> None:
    subject = client()
    subject.engine.tell(use("", 10, EVEN, (3, 6)))
    subject.engine.tell(use("code", 4, ONE_SIDED, (1, 4)))
    subject.engine.tell(use("code", 4, ONE_SIDED))
    answer = subject.get("/v1/experts").json()
    assert answer["experts"] == {"layers": [0, 2], "experts": 4, "top_k": 2, "identical": False}
    assert answer["note"] is None
    assert answer["chance"] == {"share": 0.25, "repeated": 0.25}
    assert answer["control"] is False
    assert client(allow_expert_control=True).get("/v1/experts").json()["control"] is True
    assert answer["use"]["tokens"] == 18
    assert answer["use"]["chance_entropy"] == pytest.approx(1 - 2 / (2 * 2 * 18) / np.log(4))
    first, second = answer["use"]["layers"]
    assert (first["layer"], first["counts"], first["repeats"], first["repeated"]) == (0, [13, 5, 5, 13], 4, 4 / 18)
    assert (second["layer"], second["counts"], second["repeats"]) == (2, [10, 18, 8, 0], 10)
    assert [(each["topic"], each["tokens"]) for each in answer["topics"]] == [(None, 10), ("code", 8)]
    unnamed, code = answer["topics"]
    assert code["layers"][0]["counts"] == [8, 0, 0, 8]
    assert unnamed["layers"][0]["entropy"] == pytest.approx(1)
    assert unnamed["layers"][1]["entropy"] == code["layers"][0]["entropy"] == pytest.approx(0.5)


def test_nothing_is_counted_yet() -> None:
    answer = client().get("/v1/experts").json()
    (first, _) = answer["use"]["layers"]
    assert (answer["use"]["tokens"], first["counts"], first["entropy"], first["repeated"]) == (0, [0] * 4, None, None)
    assert answer["topics"] == [] and answer["use"]["chance_entropy"] is None


def test_the_last_minutes() -> None:
    subject = client()
    subject.engine.tell(use("", 10, EVEN))
    recent = subject.get("/v1/experts").json()["last_minutes"]
    assert [(each["minutes"], each["tokens"], each["layers"][0]["counts"]) for each in recent] == [
        (1, 10, [5] * 4),
        (5, 10, [5] * 4),
    ]


def test_reset() -> None:
    subject = client(expert_metrics=True)
    subject.engine.tell(use("code", 10, EVEN))
    assert subject.call("POST", "/v1/experts/reset", b"", {}).json()["object"] == "experts.reset"
    answer = subject.get("/v1/experts").json()
    assert answer["use"]["tokens"] == answer["last_minutes"][0]["tokens"] == 0 and answer["topics"] == []
    subject.engine.tell(use("code", 4, ONE_SIDED))
    assert subject.get("/v1/experts").json()["use"]["tokens"] == 4
    assert samples(subject)["octavo:routed_tokens_total", "", ""] == 14


def test_a_dense_model_says_so() -> None:
    subject = Client(FakeEngineClient(state=READY))
    answer = subject.get("/v1/experts").json()
    assert answer["experts"] is answer["use"] is None and "dense" in answer["note"]
    assert subject.get("/v1/experts.npz").status == 404


def test_equal_experts_are_said_to_mean_nothing() -> None:
    subject = client()
    subject.engine.state = replace(SPARSE, experts=replace(SHAPE, identical=True))
    assert "equal weights" in subject.get("/v1/experts").json()["note"]


def test_before_the_engine_is_ready() -> None:
    assert Client(FakeEngineClient(state=Loading())).get("/v1/experts").status == 503


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", ".npz"), ("POST", "/reset")])
def test_a_key_is_needed(method: str, path: str) -> None:
    subject = client(api_keys=("secret",))
    assert subject.call(method, f"/v1/experts{path}", b"", {}).status == 401
    assert subject.call(method, f"/v1/experts{path}", b"", {"authorization": "Bearer secret"}).status == 200


def topics(subject: Client) -> list[str]:
    return [request.params.topic for request in subject.engine.submitted]


def test_the_topic_of_a_request() -> None:
    subject = client()
    subject.chat(metadata={"topic": "law", "else": [1]})
    subject.complete(metadata={"topic": "code"})
    subject.respond(metadata={"topic": "poems"})
    subject.message(metadata={"topic": "maths", "user_id": "u"})
    subject.chat()
    subject.chat(metadata={"topic": 5})
    subject.chat(metadata={"topic": "x" * MAX_TOPIC_LENGTH})
    subject.chat(metadata={"topic": "x" * (MAX_TOPIC_LENGTH + 1)})
    assert topics(subject) == ["law", "code", "poems", "maths", "", "", "x" * MAX_TOPIC_LENGTH, OTHER]
    assert subject.chat(metadata="law").status == 400


def test_so_many_topics_have_room() -> None:
    subject = client()
    for number in range(MAX_TOPICS + 2):
        subject.chat(metadata={"topic": f"t{number}"})
    subject.chat(metadata={"topic": "t0"})
    assert topics(subject)[-4:] == [f"t{MAX_TOPICS - 1}", OTHER, OTHER, "t0"]
    subject.call("POST", "/v1/experts/reset", b"", {})
    subject.chat(metadata={"topic": "late"})
    assert topics(subject)[-1] == "late"


def test_the_export_holds_what_the_answer_tells() -> None:
    subject = client()
    subject.engine.tell(use("", 10, EVEN, (3, 6)))
    subject.engine.tell(use("code", 4, ONE_SIDED, (1, 4)))
    reply = subject.get("/v1/experts.npz")
    assert reply.headers["content-type"] == "application/octet-stream"
    arrays = np.load(io.BytesIO(reply.body), allow_pickle=False)
    assert arrays["layers"].tolist() == [0, 2] and (arrays["top_k"], arrays["tokens"]) == (2, 14)
    assert arrays["counts"].tolist() == [[9, 5, 5, 9], [10, 14, 4, 0]] and arrays["repeats"].tolist() == [4, 10]
    assert arrays["topics"].tolist() == ["", "code"] and arrays["topic_tokens"].tolist() == [10, 4]
    assert arrays["topic_counts"][1].tolist() == [[4, 0, 0, 4], [0, 4, 4, 0]]
    assert arrays["topic_repeats"].tolist() == [[3, 6], [1, 4]]


def test_the_export_of_nothing_keeps_its_shape() -> None:
    arrays = np.load(io.BytesIO(client().get("/v1/experts.npz").body), allow_pickle=False)
    assert arrays["counts"].shape == (2, 4) and arrays["topic_counts"].shape == (0, 2, 4)


def samples(subject: Client) -> dict[tuple[str, str, str], float]:
    families = text_string_to_metric_families(subject.get("/metrics").body.decode())
    return {
        (sample.name, sample.labels.get("layer", ""), sample.labels.get("expert", "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_of_each_expert_are_behind_a_flag() -> None:
    subject = client(expert_metrics=True)
    subject.engine.tell(use("code", 10, (1, 2, 3, 4, 5, 6, 7, 8), (3, 6)))
    subject.engine.tell(use("", 10, (1, 0, 0, 0, 0, 0, 0, 1)))
    found = samples(subject)
    assert found["octavo:routed_tokens_total", "", ""] == 20
    assert found["octavo:expert_tokens_total", "0", "0"] == 2 and found["octavo:expert_tokens_total", "2", "3"] == 9
    assert found["octavo:expert_repeats_total", "2", ""] == 6
    assert not any("expert" in name for name, _, _ in samples(client()))
    dense = Client(FakeEngineClient(state=READY), config=ServerConfig((MODEL,), expert_metrics=True))
    assert not any("expert" in name for name, _, _ in samples(dense))
