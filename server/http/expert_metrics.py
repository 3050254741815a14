"""Counts in /metrics which experts serve, if the server is told to: a large model has thousands of such counters."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine.api import ExpertShape
from octavo.server.experts.record import ExpertRecord


class ExpertCollector(Collector):
    """Reads the record at each scrape. There are no counters of a dense model, nor before the engine was ready."""

    def __init__(self, record: ExpertRecord, shape: Callable[[], ExpertShape | None], model: str) -> None:
        self._record, self._shape, self._model = record, shape, model

    def collect(self) -> Iterator[Metric]:
        if (shape := self._shape()) is None:
            return
        total = self._record.total(shape)
        routed = self._family("routed_tokens", "Tokens whose experts were counted: computed ones, not cached ones.")
        routed.add_metric([self._model], total.tokens)
        served = self._family(
            "expert_tokens", "Tokens that each expert of each sparse layer served.", "layer", "expert"
        )
        repeated = self._family(
            "expert_repeats", "Tokens whose first expert is also that of the token before, by layer.", "layer"
        )
        for layer, counts, repeats in zip(shape.layers, total.counts.tolist(), total.repeats.tolist(), strict=True):
            repeated.add_metric([self._model, str(layer)], repeats)
            for expert, count in enumerate(counts):
                served.add_metric([self._model, str(layer), str(expert)], count)
        yield from (routed, served, repeated)

    def _family(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"octavo:{name}", text, labels=["model_name", *labels])
