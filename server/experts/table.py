"""Tells of the use of experts by topic as text: a table for a terminal, and rows for a spreadsheet."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import ExpertShape
from octavo.server.experts.figures import chance_entropy, entropy
from octavo.server.experts.record import Tally

WIDEST = 16  # experts that have a column each on a terminal
FAVOURITES = 6  # experts that are named for each topic where there are more
HEADER = ("topic", "tokens", "layer", "expert", "count", "share")


def shares(tally: Tally, layers: Sequence[int]) -> NDArray[np.float64]:
    """Returns each expert's share of a topic's tokens and places, the mean over some rows of the counts [E].

    A topic without tokens has shares of zero.
    """
    counts = tally.counts[list(layers)]  # [some layers, E]
    share: NDArray[np.float64] = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).mean(0)  # [E]
    return share


def table(shape: ExpertShape, topics: Mapping[str, Tally], rows: Sequence[int]) -> str:
    """Returns a line for each topic: its tokens, its entropy and that of chance, and its experts' shares in percent.

    Shares and entropy are means over some rows of the counts, each of which is a sparse layer. The last line is chance.
    """
    head = ["topic", "tokens", "entropy", "by chance", *_columns(shape)]
    lines = [[topic, *_described(shape, tally, rows), *_shown(shares(tally, rows))] for topic, tally in topics.items()]
    chance = f"{100 / shape.experts:.1f}"
    last = ["chance", "", "", "", *([chance] * shape.experts if shape.experts <= WIDEST else [f"each {chance}"])]
    return _aligned([head, *lines, last])


def _columns(shape: ExpertShape) -> list[str]:
    few = shape.experts <= WIDEST
    return [f"e{expert} %" for expert in range(shape.experts)] if few else ["most used experts, %"]


def _shown(share: NDArray[np.float64]) -> list[str]:
    if len(share) <= WIDEST:
        return [f"{100 * each:.1f}" for each in share]
    best = np.argsort(-share, kind="stable")[:FAVOURITES]
    return ["  ".join(f"e{expert} {100 * share[expert]:.1f}" for expert in best)]


def _described(shape: ExpertShape, tally: Tally, rows: Sequence[int]) -> list[str]:
    """Returns the number of tokens, the mean entropy of the rows, and the entropy that chance would give."""
    known = [each for each in (entropy(tally.counts[row]) for row in rows) if each is not None]
    mean, chance = sum(known) / len(known) if known else None, chance_entropy(shape, tally.tokens)
    return [f"{tally.tokens:,}", *("-" if each is None else f"{each:.2f}" for each in (mean, chance))]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Returns the lines in columns. Numbers end below each other, and words begin so."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    )


def rows_of(shape: ExpertShape, topics: Mapping[str, Tally]) -> str:
    """Returns CSV with a row for each topic, sparse layer and expert. Its columns are HEADER."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for topic, tally in topics.items():
        for layer, counts in zip(shape.layers, tally.counts, strict=True):
            total = max(int(counts.sum()), 1)
            for expert, count in enumerate(counts.tolist()):
                writer.writerow([topic, tally.tokens, layer, expert, count, f"{count / total:.6f}"])
    return text.getvalue()
