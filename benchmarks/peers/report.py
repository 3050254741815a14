"""The figures of benchmarks.peers as Markdown tables, and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.common.figures import Spread
from benchmarks.common.markdown import head, line, milliseconds, spread
from benchmarks.peers.contenders import CONTENDERS, OCTAVO
from benchmarks.peers.figures import CLIENTS, EXPERT_TOKENS, LOADS, Measured, ratio, share, step_bytes
from octavo.model.config import ModelConfig

DECODING = tuple(load for load in LOADS if load.max_tokens > 1)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    machine: Mapping[str, Any]
    config: ModelConfig
    threads: int
    rounds: int
    measured: Mapping[str, Measured]  # contender -> ...

    def markdown(self) -> str:
        """Where it was measured, then a table for each thing that was."""
        machine = self.machine
        found_on = (
            f"{machine['cpu']}, {self.threads} threads ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB; load {machine['load_average']:.2f} before the run and "
            f"{machine['load_average_after']:.2f} after it; {self.rounds} rounds: median (low to high)",
            ", ".join(f"{name} {machine[name]}" for name in ("octavo", "torch", "transformers", "python"))
            + f"; llama.cpp {machine['llama.cpp']}",
        )
        tables = (self._engine, self._shares, self._engine_ratios, self._experts, self._http, self._http_ratios)
        parts = ["\n".join(found_on), *("\n".join(table()) for table in (*tables, self._starts))]
        return "\n\n".join(part for part in parts if part)

    def document(self) -> dict[str, Any]:
        """Every round of everything, and the ratios."""
        return {
            "machine": dict(self.machine),
            "model": asdict(self.config),
            "threads": self.threads,
            "rounds": self.rounds,
            "contenders": {name: _document(one) for name, one in self.measured.items()},
        }

    def _having(self, section: str) -> list[str]:
        return [name for name, one in self.measured.items() if getattr(one, section)]

    def _pairs(self, section: str) -> Iterator[tuple[str, str]]:
        """Each Octavo with each other program."""
        names = self._having(section)
        ours = [name for name in names if CONTENDERS[name].program == OCTAVO]
        return ((our, other) for our in ours for other in names if CONTENDERS[other].program != OCTAVO)

    def _engine(self) -> Iterator[str]:
        names = self._having("engine")
        if not names:
            return
        yield from head("without HTTP, tokens/s", *(load.name for load in LOADS))
        for name in names:
            rates = (spread(Spread.over(self.measured[name].rates(load.name)), 1) for load in LOADS)
            yield line(CONTENDERS[name].title, *rates)
        forms = [f"{CONTENDERS[name].title}: {self.measured[name].form}" for name in names if self.measured[name].form]
        yield from ("", *forms)

    def _shares(self) -> Iterator[str]:
        names = self._having("engine")
        if not names:
            return
        yield from head("weights read, share of the bandwidth", *(load.name for load in DECODING))
        for name in names:
            cells = []
            for load in DECODING:
                contender = CONTENDERS[name]
                nbytes = step_bytes(self.config, load.streams, contender.expert_bytes, contender.linear_bytes)
                figures = self.measured[name].engine[load.name]
                shares = Spread.over(100 * share(figure, load, nbytes) for figure in figures)
                seen = Spread.over(figure.bandwidth / 1e9 for figure in figures)
                cells.append(f"{spread(shares, 0)} % of {seen.median:.1f} GB/s")
            yield line(CONTENDERS[name].title, *cells)

    def _engine_ratios(self) -> Iterator[str]:
        pairs = list(self._pairs("engine"))
        if not pairs:
            return
        yield from head("times as fast, without HTTP", *(load.name for load in LOADS))
        for our, other in pairs:
            ours, theirs = self.measured[our], self.measured[other]
            cells = (spread(ratio(ours.rates(load.name), theirs.rates(load.name)), 2) for load in LOADS)
            yield line(_versus(our, other), *cells)

    def _experts(self) -> Iterator[str]:
        names = self._having("experts")
        if not names:
            return
        yield from head("one layer's experts", *(f"{tokens} token{'s'[: tokens - 1]}" for tokens in EXPERT_TOKENS))
        for name in names:
            cells = []
            for measured in self.measured[name].experts.values():
                figures = [figure for figure in measured if figure.steady] or measured
                shares = Spread.over(100 * figure.share for figure in figures)
                seconds = Spread.over(1e6 * figure.seconds for figure in figures)
                read = Spread.over(figure.bandwidth / 1e9 for figure in figures)
                of = f"{len(figures)} of {len(measured)}"
                cells.append(f"{spread(shares, 0)} % of {read.median:.1f} GB/s; {seconds.median:.0f} us; {of}")
            yield line(CONTENDERS[name].title, *cells)

    def _http(self) -> Iterator[str]:
        names = self._having("http")
        if not names:
            return
        yield from head("over HTTP", "clients at once", "tokens/s", "first token p50", "between tokens p50", "failed")
        for name in names:
            for clients in CLIENTS:
                row = self.measured[name].row(clients)
                yield line(
                    CONTENDERS[name].title,
                    str(clients),
                    spread(row.tokens_per_second, 1),
                    milliseconds(row.first_token_p50),
                    milliseconds(row.inter_token_p50),
                    f"{row.failed} of {row.requests}",
                )

    def _http_ratios(self) -> Iterator[str]:
        pairs = list(self._pairs("http"))
        if not pairs:
            return
        columns = (f"{what}, {clients} at once" for what in ("tokens/s", "first token") for clients in CLIENTS)
        yield from head("times, over HTTP", *columns)
        for our, other in pairs:
            ours, theirs = self.measured[our], self.measured[other]
            rates = (ratio(ours.http_rates(clients), theirs.http_rates(clients)) for clients in CLIENTS)
            firsts = (ratio(ours.first_tokens(clients), theirs.first_tokens(clients)) for clients in CLIENTS)
            yield line(_versus(our, other), *(spread(each, 2) for each in (*rates, *firsts)))

    def _starts(self) -> Iterator[str]:
        names = self._having("starts")
        if not names:
            return
        yield from head(
            "until it is ready",
            "as",
            "seconds",
            "peak RssAnon",
            "peak RSS, with mapped files",
            "RssAnon after all clients",
        )
        for name in names:
            for section, start in self.measured[name].starts.items():
                held = self.measured[name].served if section == "server" else 0
                sizes = (f"{size / 1e9:.2f} GB" if size else "" for size in (start.anonymous, start.resident, held))
                yield line(CONTENDERS[name].title, section, f"{start.seconds:.1f}", *sizes)


def _document(one: Measured) -> dict[str, Any]:
    """Of HTTP the figures of each round, not the times of every token."""
    http = {
        clients: {
            "tokens_per_second": one.http_rates(clients),
            "first_token": one.first_tokens(clients),
            "all_rounds": asdict(one.row(clients)),
        }
        for clients in one.http
    }
    return asdict(replace(one, http={})) | {"http": http}


def _versus(our: str, other: str) -> str:
    return f"{CONTENDERS[our].title} / {CONTENDERS[other].title}"
