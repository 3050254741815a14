"""Draws how often each expert serves each topic. matplotlib is imported here alone, when something is drawn."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from octavo.engine.api import ExpertShape
from octavo.server.experts.record import Tally
from octavo.server.experts.table import shares

FORMATS = (".svg", ".png", ".pdf")
BRIGHT = 0.6  # share of the scale from which on its colours are light
MOST_NUMBERS = 12  # experts up to which each cell has its number


def can_draw() -> bool:
    """Returns whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(shape: ExpertShape, topics: Mapping[str, Tally], rows: Sequence[int], path: Path) -> None:
    """Draws a map of topics and experts, in the format of the path's suffix. Raises OSError.

    Its colours are shares over the fair share, the mean over some rows of the counts: 1.0 is what chance would give.
    """
    from matplotlib.figure import Figure

    relative = np.array([shares(tally, rows) for tally in topics.values()]) * shape.experts  # [topics, E]
    figure = Figure(figsize=(2.5 + 0.5 * min(shape.experts, 40), 1.6 + 0.4 * len(topics)), layout="constrained")
    axes = figure.subplots()
    most = max(2.0, float(relative.max()))
    image = axes.imshow(relative, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    axes.set_yticks(range(len(topics)), [f"{topic} ({tally.tokens:,})" for topic, tally in topics.items()])
    axes.set_xlabel("expert")
    if shape.experts <= MOST_NUMBERS:
        axes.set_xticks(range(shape.experts))
        for (row, column), value in np.ndenumerate(relative):
            axes.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > BRIGHT * most else "white",
            )
    figure.colorbar(image, label="share over the fair share; 1.0 is chance")
    figure.savefig(path, dpi=160)
