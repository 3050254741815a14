"""Tables in Markdown, and how their cells are written."""

from benchmarks.common.figures import Spread


def head(*cells: str) -> tuple[str, str]:
    """The two lines above a table: what its columns are, all but the first to the right."""
    return line(*cells), line("---", *("---:",) * (len(cells) - 1))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def spread(of: Spread, digits: int) -> str:
    return f"{of.median:.{digits}f} ({of.low:.{digits}f} to {of.high:.{digits}f})"


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
