"""Holds the figures of benchmarks.peers, round by round, and writes them as Markdown tables and as JSON."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from benchmarks.common.figures import LoadSummary, Round, Spread, milliseconds, table_head, table_line
from benchmarks.common.loads import Load, touched_share
from benchmarks.common.process import Start
from benchmarks.peers.contenders import CONTENDERS, OCTAVO, PROJECTS
from benchmarks.peers.gguf_file import WeightBytes
from octavo.model.config import ModelConfig

LOADS = (
    Load("prefill 512", 1, 512, 1),
    Load("1 stream", 1, 16, 33),
    Load("4 streams", 4, 16, 25),
    Load("8 streams", 8, 16, 17),
    Load("16 streams", 16, 16, 17),
)
DECODING = tuple(load for load in LOADS if load.max_tokens > 1)
CLIENTS = {1: 3, 8: 1, 16: 1}  # clients at once -> how often they come in a round
EXPERT_TOKENS = (1, 2, 4, 8)
PROGRAMS = ("octavo", "torch", "transformers", *PROJECTS, "python")  # whose versions are stated
STEADY = 0.9  # share of the faster of two measurements of the memory


@dataclass(frozen=True, slots=True)
class LoadFigure:
    """A LoadFigure is one measurement below HTTP, and the better of the bandwidths right before and after it."""

    rate: float  # tokens a second
    bandwidth: float  # bytes a second


@dataclass(frozen=True, slots=True)
class LayerFigure:
    """A LayerFigure is one measurement of one layer's experts."""

    seconds: float
    nbytes: float  # of the distinct experts that were touched
    before: float  # the memory's bytes a second before it
    after: float  # the same after it

    @property
    def bandwidth(self) -> float:
        return max(self.before, self.after)

    @property
    def share(self) -> float:
        """Returns the share of the memory's bandwidth that was used."""
        return self.nbytes / self.seconds / self.bandwidth

    @property
    def steady(self) -> bool:
        """Says whether the memory was as fast after it as before; if it was not, the share says nothing."""
        return min(self.before, self.after) >= STEADY * self.bandwidth


@dataclass(slots=True)
class ContenderFigures:
    """A ContenderFigures holds what was measured of one contender; every list has an item for each round."""

    engine: dict[str, list[LoadFigure]] = field(default_factory=dict)  # load -> ...
    http: dict[int, list[Round]] = field(default_factory=dict)  # clients -> ...
    experts: dict[int, list[LayerFigure]] = field(default_factory=dict)  # tokens -> ..., several a round
    starts: dict[str, Start] = field(default_factory=dict)  # section -> ...
    served: int = 0  # bytes that its server holds after all clients: RssAnon
    form: str = ""
    weight_bytes: WeightBytes | None = None  # of its file

    def rates(self, load: str) -> list[float]:
        return [figure.rate for figure in self.engine[load]]

    def http_rates(self, clients: int) -> list[float]:
        return [one.rate for one in self.http[clients]]

    def first_tokens(self, clients: int) -> list[float]:
        """Returns each round's median time to the first token; infinity for a round in which no request succeeded."""
        return [median([sample.first for sample in one.good] or [float("inf")]) for one in self.http[clients]]

    def summary(self, clients: int) -> LoadSummary:
        return LoadSummary.over(clients, self.http[clients])

    @property
    def failed(self) -> int:
        """Returns the number of requests over HTTP that had no good answer."""
        return sum(self.summary(clients).failed for clients in self.http)


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> Spread:
    """Returns ours divided by theirs, round by round."""
    return Spread.over(our / their for our, their in zip(ours, theirs, strict=True))


def step_bytes(config: ModelConfig, streams: int, expert_bytes: float, linear_bytes: float) -> float:
    """Returns the bytes of weights that a step of so many streams reads on average."""
    touched = config.num_experts * touched_share(config, streams)
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    attention = config.hidden_size * config.head_dim * heads
    expert = 3 * config.hidden_size * config.intermediate_size
    head = config.vocab_size * config.hidden_size
    return linear_bytes * head + config.num_hidden_layers * (linear_bytes * attention + expert_bytes * touched * expert)


def share(figure: LoadFigure, load: Load, nbytes: float) -> float:
    """Returns the share of the bandwidth that reading a step's `nbytes` of weights took."""
    return nbytes * figure.rate / load.streams / figure.bandwidth


@dataclass(frozen=True, slots=True)
class PeersReport:
    """A PeersReport holds everything that one run found."""

    machine: Mapping[str, Any]
    config: ModelConfig
    threads: int
    rounds: int
    measured: Mapping[str, ContenderFigures]  # contender -> ...

    def markdown(self) -> str:
        """Describes the machine, and writes a table for each thing that was measured."""
        machine = self.machine
        found_on = (
            f"{machine['cpu']}, {self.threads} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load {machine['load_average']:.2f} before the run and "
            f"{machine['load_average_after']:.2f} after it; {self.rounds} rounds: median (low to high)",
            ", ".join(f"{name} {machine[name]}" for name in PROGRAMS if name in machine),
        )
        tables = (self._engine, self._shares, self._engine_ratios, self._experts, self._http, self._http_ratios)
        parts = ["\n".join(found_on), *("\n".join(table()) for table in (*tables, self._starts))]
        return "\n\n".join(part for part in parts if part)

    def document(self) -> dict[str, Any]:
        """Returns every round of everything, for JSON."""
        return {
            "machine": dict(self.machine),
            "model": asdict(self.config),
            "threads": self.threads,
            "rounds": self.rounds,
            "contenders": {name: _document(one) for name, one in self.measured.items()},
        }

    def _having(self, section: str) -> list[str]:
        """Returns the contenders that were measured in the section."""
        return [name for name, one in self.measured.items() if getattr(one, section)]

    def _rivals(self, section: str) -> list[tuple[str, str]]:
        """Returns each form of Octavo with each form of another program."""
        names = self._having(section)
        ours = [name for name in names if CONTENDERS[name].program == OCTAVO]
        return [(our, other) for our in ours for other in names if CONTENDERS[other].program != OCTAVO]

    def _engine(self) -> Iterator[str]:
        names = self._having("engine")
        if not names:
            return
        yield from table_head("without HTTP, tokens/s", *(load.name for load in LOADS))
        for name in names:
            rates = (Spread.over(self.measured[name].rates(load.name)).cell(1) for load in LOADS)
            yield table_line(CONTENDERS[name].title, *rates)
        forms = [f"{CONTENDERS[name].title}: {self.measured[name].form}" for name in names if self.measured[name].form]
        yield from ("", *forms)

    def _shares(self) -> Iterator[str]:
        names = self._having("engine")
        if not names:
            return
        yield from table_head("weights read, share of the bandwidth", *(load.name for load in DECODING))
        for name in names:
            contender, cells = CONTENDERS[name], []
            held = self.measured[name].weight_bytes or WeightBytes(contender.expert_bytes, contender.linear_bytes)
            for load in DECODING:
                nbytes = step_bytes(self.config, load.streams, held.experts, held.linears)
                figures = self.measured[name].engine[load.name]
                shares = Spread.over(100 * share(figure, load, nbytes) for figure in figures)
                bandwidth = Spread.over(figure.bandwidth / 1e9 for figure in figures)
                cells.append(f"{shares.cell(0)} % of {bandwidth.median:.1f} GB/s")
            yield table_line(CONTENDERS[name].title, *cells)

    def _engine_ratios(self) -> Iterator[str]:
        rivals = self._rivals("engine")
        if not rivals:
            return
        yield from table_head("times as fast, without HTTP", *(load.name for load in LOADS))
        for our, other in rivals:
            ours, theirs = self.measured[our], self.measured[other]
            cells = (ratio(ours.rates(load.name), theirs.rates(load.name)).cell(2) for load in LOADS)
            yield table_line(_versus(our, other), *cells)

    def _experts(self) -> Iterator[str]:
        names = self._having("experts")
        if not names:
            return
        columns = (f"{tokens} token{'s'[: tokens - 1]}" for tokens in EXPERT_TOKENS)
        yield from table_head("one layer's experts", *columns)
        for name in names:
            cells = []
            for measured in self.measured[name].experts.values():
                figures = [figure for figure in measured if figure.steady] or measured
                shares = Spread.over(100 * figure.share for figure in figures)
                seconds = Spread.over(1e6 * figure.seconds for figure in figures)
                bandwidth = Spread.over(figure.bandwidth / 1e9 for figure in figures)
                steady = f"{len(figures)} of {len(measured)}"
                cells.append(f"{shares.cell(0)} % of {bandwidth.median:.1f} GB/s; {seconds.median:.0f} us; {steady}")
            yield table_line(CONTENDERS[name].title, *cells)

    def _http(self) -> Iterator[str]:
        names = self._having("http")
        if not names:
            return
        columns = ("clients at once", "tokens/s", "first token p50", "between tokens p50", "failed")
        yield from table_head("over HTTP", *columns)
        for name in names:
            for clients in CLIENTS:
                summary = self.measured[name].summary(clients)
                yield table_line(
                    CONTENDERS[name].title,
                    str(clients),
                    summary.tokens_per_second.cell(1),
                    milliseconds(summary.first_token_p50),
                    milliseconds(summary.inter_token_p50),
                    f"{summary.failed} of {summary.requests}",
                )

    def _http_ratios(self) -> Iterator[str]:
        rivals = self._rivals("http")
        if not rivals:
            return
        columns = (f"{what}, {clients} at once" for what in ("tokens/s", "first token") for clients in CLIENTS)
        yield from table_head("times, over HTTP", *columns)
        for our, other in rivals:
            ours, theirs = self.measured[our], self.measured[other]
            rates = (ratio(ours.http_rates(clients), theirs.http_rates(clients)) for clients in CLIENTS)
            firsts = (ratio(ours.first_tokens(clients), theirs.first_tokens(clients)) for clients in CLIENTS)
            yield table_line(_versus(our, other), *(each.cell(2) for each in (*rates, *firsts)))

    def _starts(self) -> Iterator[str]:
        names = self._having("starts")
        if not names:
            return
        memory = ("peak RssAnon", "peak RSS, with mapped files", "RssAnon after all clients")
        yield from table_head("until it is ready", "as", "seconds", *memory)
        for name in names:
            for section, start in self.measured[name].starts.items():
                held = self.measured[name].served if section == "server" else 0
                sizes = (f"{size / 1e9:.2f} GB" if size else "" for size in (start.anonymous, start.resident, held))
                yield table_line(CONTENDERS[name].title, section, f"{start.seconds:.1f}", *sizes)


def _document(one: ContenderFigures) -> dict[str, Any]:
    """Returns all figures; over HTTP those of each round, without the times of every token."""
    http = {
        clients: {
            "tokens_per_second": one.http_rates(clients),
            "first_token": one.first_tokens(clients),
            "all_rounds": asdict(one.summary(clients)),
        }
        for clients in one.http
    }
    return asdict(replace(one, http={})) | {"http": http}


def _versus(our: str, other: str) -> str:
    return f"{CONTENDERS[our].title} / {CONTENDERS[other].title}"
