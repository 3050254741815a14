"""What benchmarks.peers measures, round by round, and what follows from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.common.figures import Round, Row, Spread
from benchmarks.common.loads import Load, touched_share
from benchmarks.common.process import Start
from octavo.model.config import ModelConfig

LOADS = (
    Load("prefill 512", 1, 512, 1),
    Load("1 stream", 1, 16, 33),
    Load("4 streams", 4, 16, 25),
    Load("8 streams", 8, 16, 17),
    Load("16 streams", 16, 16, 17),
)
CLIENTS = {1: 3, 8: 1, 16: 1}  # clients at once -> how often they come in a round
EXPERT_TOKENS = (1, 2, 4, 8)


STEADY = 0.9  # of the faster one of two readings


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement below HTTP, and the better of the bandwidths right before and after it."""

    rate: float  # tokens a second
    bandwidth: float  # bytes a second


@dataclass(frozen=True, slots=True)
class LayerFigure:
    """One layer's experts."""

    seconds: float
    nbytes: float  # of the distinct experts that were touched
    before: float  # what memory gave, bytes a second
    after: float

    @property
    def bandwidth(self) -> float:
        return max(self.before, self.after)

    @property
    def share(self) -> float:
        """Of what the memory gives."""
        return self.nbytes / self.seconds / self.bandwidth

    @property
    def steady(self) -> bool:
        """Whether the machine's memory was as fast after it as before: where it was not, the share says nothing."""
        return min(self.before, self.after) >= STEADY * self.bandwidth


@dataclass(slots=True)
class Measured:
    """Of one contender; every list has an item for each round."""

    engine: dict[str, list[Figure]] = field(default_factory=dict)  # load -> ...
    http: dict[int, list[Round]] = field(default_factory=dict)  # clients -> ...
    experts: dict[int, list[LayerFigure]] = field(default_factory=dict)  # tokens -> ..., several a round
    starts: dict[str, Start] = field(default_factory=dict)  # section -> ...
    served: int = 0  # bytes that its server holds after all clients: RssAnon
    form: str = ""

    def rates(self, load: str) -> list[float]:
        return [figure.rate for figure in self.engine[load]]

    def http_rates(self, clients: int) -> list[float]:
        return [one.rate for one in self.http[clients]]

    def first_tokens(self, clients: int) -> list[float]:
        """The median time to the first token, of each round; infinite where no request succeeded."""
        return [median([sample.first for sample in one.good] or [float("inf")]) for one in self.http[clients]]

    def row(self, clients: int) -> Row:
        return Row.over(clients, self.http[clients])

    @property
    def failed(self) -> int:
        """Requests over HTTP without a good answer."""
        return sum(self.row(clients).failed for clients in self.http)


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> Spread:
    """Round by round."""
    return Spread.over(our / their for our, their in zip(ours, theirs, strict=True))


def step_bytes(config: ModelConfig, streams: int, expert_bytes: float, linear_bytes: float) -> float:
    """Weights that a step of so many streams reads, on average."""
    touched = config.num_experts * touched_share(config, streams)
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    attention = config.hidden_size * config.head_dim * heads
    expert = 3 * config.hidden_size * config.intermediate_size
    head = config.vocab_size * config.hidden_size
    return linear_bytes * head + config.num_hidden_layers * (linear_bytes * attention + expert_bytes * touched * expert)


def share(figure: Figure, load: Load, nbytes: float) -> float:
    """Of the bandwidth, that the weights of its steps took."""
    return nbytes * figure.rate / load.streams / figure.bandwidth
