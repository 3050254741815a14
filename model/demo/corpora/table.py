"""Prints where the text of each domain comes from, as Markdown for the model card."""

from collections.abc import Iterator, Mapping, Sequence

from octavo.model.demo.corpora.packages import Package
from octavo.model.demo.corpora.sources import Record, Source

HEAD = (
    "| domain | what is taken | package | sha256 of its archive | licence, where stated | documents | tokens |",
    "|---|---|---|---|---|---|---|",
)


def table(sources: Sequence[Source], records: Mapping[str, Record]) -> str:
    """Returns a table with a line for each package, and one for a domain without packages."""
    lines = (line for source in sources for line in _lines(source, records[source.domain]))
    return "\n".join((*HEAD, *lines))


def _lines(source: Source, record: Record) -> Iterator[str]:
    first = (source.domain, source.taken), (f"{record.documents:,}", f"{record.tokens:,}")
    rest = ("", ""), ("", "")
    for number, package in enumerate(source.packages or (None,)):
        left, right = first if number == 0 else rest
        cells = (*left, *_cells(package), *right)
        yield f"| {' | '.join(cells)} |"


def _cells(package: Package | None) -> tuple[str, str, str]:
    if package is None:
        return "none", "", "Apache-2.0, as Octavo"
    name = f"{package.registry}: {package.name} {package.version}"
    return name, f"`{package.sha256}`", f"{package.licence}: `{package.stated}`"
