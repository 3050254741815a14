"""Draws small plots as SVG, by hand: intervals, a map of shares, and curves. The page's style has their colours."""

from collections.abc import Mapping, Sequence
from html import escape

from octavo.model.train.statistics import Difference

WIDTH, LABEL, LINE = 640, 150, 22  # of a plot, of what stands left of it, and of one row of it, in pixels
RIGHT = 30
SERIES = 8  # colours that the page's style has


def intervals(rows: Sequence[tuple[str, Difference]], caption: str) -> str:
    """Draws differences as dots on lines from low to high, with a line at zero."""
    low = min(0.0, *(each.low for _, each in rows))
    high = max(0.0, *(each.high for _, each in rows))
    margin = 0.05 * max(high - low, 1e-9)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LABEL + (WIDTH - LABEL - RIGHT) * (value - low) / (high - low)

    height = LINE * (len(rows) + 2)
    parts = [_line(x(0), 0, x(0), height - LINE, "zero"), _text(x(0), height - 8, "0", "middle")]
    parts += [_text(x(end), height - 8, f"{end:+.2f}", "middle") for end in (low + margin, high - margin) if end]
    for number, (label, each) in enumerate(rows):
        y = LINE * (number + 0.7)
        kind = {"lower": "better", "higher": "worse"}.get(each.verdict, "same")
        told = f"{label}: {each.mean:+.4f} ({each.low:+.4f} to {each.high:+.4f}), {each.verdict}"
        parts.append(
            f"<g class='{kind}'><title>{escape(told)}</title>{_line(x(each.low), y, x(each.high), y, 'span')}"
            f"<circle cx='{x(each.mean):.1f}' cy='{y:.1f}' r='4'/></g>" + _text(LABEL - 10, y + 4, label, "end")
        )
    return _svg(height, parts, caption)


def shares(rows: Mapping[str, Sequence[float]], columns: Sequence[str], caption: str) -> str:
    """Draws a table of shares, darker for larger ones; each cell has its number."""
    wide = (WIDTH - LABEL - RIGHT) / len(columns)
    parts = [
        _text(LABEL + wide * (n + 0.5), 14, _short(name, round(wide / 7)), "middle") for n, name in enumerate(columns)
    ]
    for number, (label, values) in enumerate(rows.items()):
        y = LINE * (number + 1)
        parts.append(_text(LABEL - 10, y + 15, label, "end"))
        for n, (name, share) in enumerate(zip(columns, values, strict=True)):
            left = LABEL + wide * n
            told = escape(f"{label}, {name}: {100 * share:.1f} %")
            parts.append(
                f"<g><title>{told}</title><rect class='cell' x='{left:.1f}' y='{y}' width='{wide - 1:.1f}' "
                f"height='{LINE - 1}' fill-opacity='{min(1.0, share):.3f}'/>"
                + _text(left + wide / 2, y + 15, f"{100 * share:.0f}", "middle", "dark" if share > 0.5 else "")
                + "</g>"
            )
    return _svg(LINE * (len(rows) + 1) + 4, parts, caption)


def curves(series: Mapping[str, Sequence[float]], across: str, caption: str) -> str:
    """Draws series over their index, each stretched to the whole width, with a legend below."""
    height, top = 220, 10
    values = [value for line in series.values() for value in line]
    low, high = min(values), max(values)
    span = max(high - low, 1e-9)
    inner = WIDTH - LABEL - RIGHT
    parts = [_text(LABEL - 10, top + 8, f"{high:.3g}", "end"), _text(LABEL - 10, height, f"{low:.3g}", "end")]
    parts += [_line(LABEL, height, WIDTH - RIGHT, height, "zero"), _text(WIDTH / 2, height + 18, across, "middle")]
    for number, (label, line) in enumerate(series.items()):
        points = " ".join(
            f"{LABEL + inner * n / max(1, len(line) - 1):.1f},{height - (height - top) * (value - low) / span:.1f}"
            for n, value in enumerate(line)
        )
        colour = f"series s{number % SERIES}{' dashed' if number >= SERIES else ''}"
        parts.append(f"<polyline class='{colour}' points='{points}'><title>{escape(label)}</title></polyline>")
        y = height + LINE * (number // 2 + 2)
        left = LABEL + inner / 2 * (number % 2)
        parts += [_line(left, y - 4, left + 20, y - 4, colour), _text(left + 26, y, label, "start")]
    return _svg(height + LINE * ((len(series) + 1) // 2 + 2), parts, caption)


def smoothed(values: Sequence[float], points: int = 200) -> list[float]:
    """Returns means of neighbours, so many that at most `points` are left."""
    step = max(1, -(-len(values) // points))
    return [sum(values[n : n + step]) / len(values[n : n + step]) for n in range(0, len(values), step)]


def _svg(height: float, parts: Sequence[str], caption: str) -> str:
    return (
        f"<figure><svg viewBox='0 0 {WIDTH} {height:.0f}' role='img' aria-label='{escape(caption, quote=True)}'>"
        f"{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f"<line class='{kind}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(_short(text, 24))}</text>"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"
