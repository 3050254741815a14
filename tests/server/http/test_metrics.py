"""/metrics has the names that dashboards know, in the format that keeps them, and totals that never fall."""

from prometheus_client.parser import text_string_to_metric_families

from octavo.engine.api import EngineStats, FinishReason, Output
from tests.server.client import MODEL, Client
from tests.server.fake import replay
from tests.server.vocab import EOS, ids_of


def scrape(client: Client, **headers: str) -> dict[str, float]:
    reply = client.get("/metrics", **headers)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == MODEL
            reason = sample.labels.get("finished_reason")
            if "le" not in sample.labels:
                samples[sample.name + (f"/{reason}" if reason else "")] = sample.value
    return samples


def test_gauges_and_totals_of_the_engine() -> None:
    client = Client()
    client.engine.stats = EngineStats(3, 4, 0.25, 5, 60, 7)
    samples = scrape(client)
    assert samples["octavo:num_requests_running"] == 3
    assert samples["octavo:num_requests_waiting"] == 4
    assert samples["octavo:kv_cache_usage_perc"] == 0.25
    assert samples["octavo:num_preemptions_total"] == 5
    assert samples["octavo:prefix_cache_queries_total"] == 60
    assert samples["octavo:prefix_cache_hits_total"] == 7


def test_totals_outlive_an_engine_that_restarts() -> None:
    client = Client()
    seen = []
    for total in (0, 10, 25, 0, 4, 30, 2, 2):
        client.engine.stats = EngineStats(preemptions=total, prefix_queries=10 * total, prefix_hits=total)
        samples = scrape(client)
        seen.append(samples["octavo:num_preemptions_total"])
        assert samples["octavo:prefix_cache_queries_total"] == 10 * seen[-1]
    assert seen == [0, 10, 25, 25, 29, 55, 57, 57]


def test_what_requests_leave_behind() -> None:
    client = Client.replaying(replay([*ids_of("abc"), EOS], ids_of("abcdef")))
    client.complete(n=2)
    client.chat(n=2, stream=True)
    client.chat(temperature=9)  # refused: not counted
    samples = scrape(client)
    prompts = [len(request.prompt) for request in client.engine.submitted]
    assert samples["octavo:prompt_tokens_total"] == prompts[0] + prompts[2]
    assert samples["octavo:generation_tokens_total"] == 2 * (4 + 6)
    assert samples["octavo:request_success_total/stop"] == 2
    assert samples["octavo:request_success_total/length"] == 2
    assert samples["octavo:request_success_total/abort"] == 0
    assert samples["octavo:time_to_first_token_seconds_count"] == 2
    assert samples["octavo:inter_token_latency_seconds_count"] == 2 * (3 + 5)
    assert samples["octavo:e2e_request_latency_seconds_count"] == 2


def test_failures_are_counted_as_such() -> None:
    client = Client.replaying(lambda request: [Output(request.id, finish_reason=FinishReason.ERROR, error="boom")])
    client.complete()
    assert scrape(client)["octavo:request_success_total/error"] == 1


def test_the_format_does_not_follow_accept() -> None:
    open_metrics = "application/openmetrics-text; version=1.0.0"
    assert "octavo:num_requests_running" in scrape(Client(), accept=open_metrics)


def test_two_apps_do_not_share_a_registry() -> None:
    first, second = Client(), Client()
    first.complete()
    assert scrape(second)["octavo:prompt_tokens_total"] == 0
