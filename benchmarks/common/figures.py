"""Sums up the times of single requests, and writes the sums as cells of Markdown tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """A Sample is one request as its client saw it; times are in seconds from the moment it was sent."""

    tokens: int = 0  # generated, as the server's usage counts them
    arrivals: tuple[float, ...] = ()  # times at which text arrived
    error: str | None = None  # why the request failed

    @property
    def first(self) -> float:
        """Returns the time to the first token."""
        return self.arrivals[0]

    @property
    def gaps(self) -> tuple[float, ...]:
        """Returns the inter-token latencies."""
        return tuple(after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Round:
    """A Round holds all requests of one load in one round."""

    samples: tuple[Sample, ...]
    seconds: float  # from the first request sent to the last one ended

    @property
    def rate(self) -> float:
        """Returns generated tokens per second."""
        return sum(sample.tokens for sample in self.good) / self.seconds

    @property
    def good(self) -> tuple[Sample, ...]:
        """Returns the requests that succeeded."""
        return tuple(sample for sample in self.samples if sample.error is None)


@dataclass(frozen=True, slots=True)
class Spread:
    """A Spread is the median and the range of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def cell(self, digits: int) -> str:
        """Writes the median and the range with so many decimal places."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """A LoadSummary is one load over all rounds. Times are in seconds, and None if no request succeeded."""

    streams: int
    tokens_per_second: Spread
    first_token_p50: float | None
    first_token_p95: float | None
    inter_token_p50: float | None
    inter_token_p95: float | None
    requests: int
    failed: int

    @classmethod
    def over(cls, streams: int, rounds: Sequence[Round]) -> "LoadSummary":
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
    """Returns the percentile, linear between the nearest ranks (numpy's default); None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    below, part = divmod((len(ordered) - 1) * percent / 100, 1)
    low = ordered[int(below)]
    high = ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + (high - low) * part


def table_head(*columns: str) -> tuple[str, str]:
    """Returns the two lines above a table; all columns but the first are aligned to the right."""
    return table_line(*columns), table_line("---", *("---:",) * (len(columns) - 1))


def table_line(*cells: str) -> str:
    """Returns one line of a table."""
    return f"| {' | '.join(cells)} |"


def milliseconds(seconds: float | None) -> str:
    """Writes seconds as whole milliseconds, and None as a dash."""
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
