"""The table of a model with many experts names the most used ones; empty topics have no shares."""

import numpy as np

from octavo.engine.api import ExpertShape
from octavo.server.experts.record import Tally
from octavo.server.experts.table import FAVOURITES, WIDEST, shares, table

MANY = ExpertShape(layers=(1,), experts=WIDEST + 1, top_k=1, identical=False)


def tally(counts: list[list[int]]) -> Tally:
    return Tally(sum(counts[0]), np.array(counts), np.zeros(len(counts), np.int64))


def test_many_experts() -> None:
    counts = [0] * 12 + [1, 2, 3, 4, 10]
    _, line, chance = table(MANY, {"law": tally([counts])}, [0]).splitlines()
    assert line.endswith("e16 50.0  e15 20.0  e14 15.0  e13 10.0  e12 5.0  e0 0.0")
    assert line.count(" e") == FAVOURITES and chance.endswith("each 5.9")


def test_the_mean_is_that_of_shares() -> None:
    two = tally([[3, 1], [0, 0]])
    assert shares(two, [0]).tolist() == [0.75, 0.25]
    assert shares(two, [0, 1]).tolist() == [0.375, 0.125]
    assert shares(tally([[3, 1], [1, 1]]), [0, 1]).tolist() == [0.625, 0.375]
