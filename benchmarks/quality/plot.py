"""Draws the increase of perplexity over the bytes of an expert's weight, for what is comparable."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.peer_formats import PEER_FORMATS
from benchmarks.quality.scores import Figures
from benchmarks.quality.weight_types import REGROUPED

# The page is seen behind the plot, so no colour is so light or so dark that it is lost on white or on black.
INK, OCTAVO, PEER = "#7d858f", "#2a9d6f", "#8a7fd4"
STYLE = {"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "quality", "text.color": INK}
LABELS = {"int4-regrouped": "Octavo int4", "int8-regrouped": "Octavo int8", "ik-iq4_ks": "ik IQ4_KS"}
LOWEST = 1e-4  # the axis is logarithmic, and ends here


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
    """Draws a point for each weight type, with the standard error as a whisker."""
    for name, figures in shown.items():
        quality, peer = figures.texts[text], name in PEER_FORMATS
        height, size = 100 * max(quality.increase, LOWEST), figures.bytes_per_weight
        colour = PEER if peer else OCTAVO
        axes.errorbar(size, height, 100 * quality.uncertainty, fmt="o" if peer else "D", color=colour, capsize=2)
        axes.annotate(_label(name), (size, height), (6, -3), textcoords="offset points", color=colour, fontsize=8)
    axes.set_title(text, fontsize=10)
    axes.set_xlabel("bytes of an expert's weight", color=INK)
    axes.set_yscale("log")
    axes.tick_params(colors=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _label(name: str) -> str:
    """Returns a peer's own name of its format; Octavo's types have its name."""
    return LABELS.get(name) or name.partition("-")[2].upper()
