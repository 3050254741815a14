"""Serves metrics to Prometheus: the engine's gauges and totals as it reads them, and times and counts observed here.

The names are vLLM's, which dashboards know, with the prefix `octavo:`.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from octavo.engine.api import EngineStats, FinishReason
from octavo.server.http.operations import Operation

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_INTER_TOKEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)


class Metrics:
    """Holds the metrics of one app, in a registry of its own: two apps in one process share nothing."""

    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(stats, model))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"octavo:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
            return family.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"octavo:{name}", text, ["model_name"], registry=self.registry).labels(model)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Time from a request's arrival to its first token.", _LATENCY
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Time between two tokens of one choice.", _INTER_TOKEN
        )
        self.e2e_request_latency = histogram(
            "e2e_request_latency_seconds", "Time from a request's arrival to the end of its answer.", _LATENCY
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated, as usage counts them.")
        success = Counter(
            "octavo:request_success",
            "Choices that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.request_success = {reason: success.labels(model, reason.value) for reason in FinishReason}

    def exposition(self) -> Response:
        """Answers in format 0.0.4, whatever Accept says: OpenMetrics would turn `octavo:x` into `octavo_x`."""
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


class EngineCollector(Collector):
    """Reads EngineStats at each scrape. A restarted engine counts from zero, but the totals shown never fall."""

    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self._stats = stats
        self._model = model
        self._last = EngineStats()
        self._before = dict.fromkeys(("preemptions", "prefix_queries", "prefix_hits"), 0)  # totals of earlier engines

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield self._gauge("num_requests_running", "Sequences that the engine runs.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences that wait to run.", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", stats.kv_cache_usage)
        totals = self._totals(stats)
        yield self._counter("num_preemptions", "Sequences preempted for want of cache.", totals["preemptions"])
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up.", totals["prefix_queries"])
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", totals["prefix_hits"])

    def _totals(self, stats: EngineStats) -> dict[str, int]:
        now, last = ({f.name: getattr(s, f.name) for f in fields(s)} for s in (stats, self._last))
        if any(now[name] < last[name] for name in self._before):
            self._before = {name: total + last[name] for name, total in self._before.items()}
        self._last = stats
        return {name: total + now[name] for name, total in self._before.items()}

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"octavo:{name}", text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"octavo:{name}", text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


def router(metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics", openapi_extra=Operation("Service", str).extra())
    async def read_metrics() -> Response:
        """Returns figures for Prometheus, in its text format 0.0.4."""
        return metrics.exposition()

    return routes
