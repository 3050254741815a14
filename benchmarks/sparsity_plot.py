"""The figures of benchmarks.sparsity as bars, to be read on a light page and on a dark one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.common.figures import Spread
from benchmarks.sparsity_figures import LOADS, NAMES, Measured

# The page shines through, so every colour must stand out from white and from black: none is very light or very dark.
INK = "#7d858f"
COLOURS = ("#2a9d6f", "#8a7fd4", "#c98a2b")
STYLE = {"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "sparsity", "text.color": INK}


def draw(measured: Mapping[str, Measured], path: Path) -> None:
    """Writes a panel for each load and one for memory; the format is that of the path's suffix."""
    panels = {
        f"{load.name}\ntokens/s": [Spread.over(one.rounds[load.name]) for one in measured.values()] for load in LOADS
    }
    panels["memory\nGB"] = [Spread.over([one.anonymous_bytes / 1e9]) for one in measured.values()]
    names = [
        f"{NAMES[shape]}\n{one.parameters / 1e9:.2f}B, {one.active / 1e9:.2f}B active"
        for shape, one in measured.items()
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        bars: Any = None
        for axes, (title, spreads) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            bars = _panel(axes, title, spreads)
        figure.legend(bars, names, loc="outside lower center", ncols=len(names), frameon=False)
        figure.savefig(path, transparent=True, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, title: str, spreads: Sequence[Spread]) -> Any:
    """A bar for each model, its median above it and its range as a whisker."""
    medians = [spread.median for spread in spreads]
    ranges = [[spread.median - spread.low for spread in spreads], [spread.high - spread.median for spread in spreads]]
    bars = axes.bar(range(len(spreads)), medians, color=COLOURS, width=0.72)
    axes.errorbar(range(len(spreads)), medians, ranges, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for index, spread in enumerate(spreads):
        axes.annotate(_short(spread.median), (index, spread.high), (0, 3), textcoords="offset points", ha="center")
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0, 1.15 * max(spread.high for spread in spreads))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    return bars


def _short(value: float) -> str:
    """Three digits or so."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
