"""From the times of single requests to the rows of a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it; times in seconds from the moment it was sent."""

    tokens: int = 0  # generated, as the server's usage counts them
    arrivals: tuple[float, ...] = ()  # of each piece of text
    error: str | None = None  # why the request failed

    @property
    def first(self) -> float:
        """Time to first token."""
        return self.arrivals[0]

    @property
    def gaps(self) -> tuple[float, ...]:
        """Inter-token latencies."""
        return tuple(after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Round:
    """All requests of one load, in one round."""

    samples: tuple[Sample, ...]
    seconds: float  # from the first request sent to the last one ended

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return sum(sample.tokens for sample in self.good) / self.seconds

    @property
    def good(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.error is None)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class Row:
    """One load over all rounds. Times are in seconds; None where no request succeeded."""

    streams: int
    tokens_per_second: Spread
    first_token_p50: float | None
    first_token_p95: float | None
    inter_token_p50: float | None
    inter_token_p95: float | None
    requests: int
    failed: int

    @classmethod
    def over(cls, streams: int, rounds: Sequence[Round]) -> "Row":
        good = [sample for one in rounds for sample in one.good]
        requests = sum(len(one.samples) for one in rounds)
        firsts = [sample.first for sample in good]
        gaps = [gap for sample in good for gap in sample.gaps]
        return cls(
            streams=streams,
            tokens_per_second=Spread.over(one.rate for one in rounds),
            first_token_p50=percentile(firsts, 50),
            first_token_p95=percentile(firsts, 95),
            inter_token_p50=percentile(gaps, 50),
            inter_token_p95=percentile(gaps, 95),
            requests=requests,
            failed=requests - len(good),
        )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the two nearest ranks, as numpy's default; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    below, part = divmod((len(ordered) - 1) * percent / 100, 1)
    low = ordered[int(below)]
    high = ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + (high - low) * part
