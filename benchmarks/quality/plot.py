"""Draws the increase of perplexity over the bytes of an expert's weight, for what is comparable."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.peer_formats import PEER_FORMATS
from benchmarks.quality.scores import Figures
from benchmarks.quality.weight_types import REGROUPED

# The page is seen behind the plot, so no colour is so light or so dark that it is lost on white or on black.
INK, OCTAVO, PEER = "#7d858f", "#2a9d6f", "#8a7fd4"
STYLE: Any = {"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "quality", "text.color": INK}
LABELS = {"int4-regrouped": "Octavo int4", "int8-regrouped": "Octavo int8", "ik-iq4_ks": "ik IQ4_KS"}
PLACES = {"ik-iq4_ks": (-10, -16), "int4-regrouped": (-54, -5)}  # of labels, in points from their own; else right of it
TICKS = (0.5, 0.6, 0.7, 0.8, 1.0, 1.2)  # bytes


def comparable(found: Mapping[str, Figures]) -> dict[str, Figures]:
    """Returns what was rounded in groups that are new to the weights, and in the experts alone."""
    peers = [name for name, form in PEER_FORMATS.items() if not form.whole]
    return {name: found[name] for name in (*REGROUPED, *peers) if name in found}


def draw(found: Mapping[str, Figures], path: Path) -> None:
    """Draws a panel for each text, in the format of the path's suffix."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = comparable(found)
    texts = list(dict.fromkeys(text for figures in shown.values() for text in figures.texts))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        for axes, text in zip(figure.subplots(1, len(texts), sharey=True), texts, strict=True):
            _panel(axes, text, shown)
        figure.supylabel("increase of perplexity, %", fontsize=10)
        figure.savefig(path, transparent=True, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, text: str, shown: Mapping[str, Figures]) -> None:
    """Draws a point for each weight type, with the standard error as a whisker, and a line along the best peers."""
    for name, figures in shown.items():
        peer, quality = name in PEER_FORMATS, figures.texts[text]
        colour, place = PEER if peer else OCTAVO, PLACES.get(name, (6, 2) if peer else (6, -9))
        point = (figures.bytes_per_weight, 100 * quality.increase)
        axes.errorbar(*point, 100 * quality.uncertainty, fmt="o" if peer else "D", color=colour, elinewidth=1)
        axes.annotate(_label(name), point, place, textcoords="offset points", color=colour, fontsize=8)
    line = front(
        [(one.bytes_per_weight, one.texts[text].increase) for name, one in shown.items() if name in PEER_FORMATS]
    )
    axes.plot([size for size, _ in line], [100 * increase for _, increase in line], color=PEER, linewidth=1, alpha=0.5)
    axes.set_title(text, fontsize=10)
    axes.set_xlabel("bytes of an expert's weight", color=INK)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 1.4)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.tick_params(colors=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points (bytes, increase) in the order of their bytes, without those worse than a smaller one."""
    kept: list[tuple[float, float]] = []
    for size, increase in sorted(points):
        if not kept or increase < kept[-1][1]:
            kept.append((size, increase))
    return kept


def _label(name: str) -> str:
    """Returns a peer's own name of its format; Octavo's types have its name."""
    return LABELS.get(name) or name.partition("-")[2].upper()
