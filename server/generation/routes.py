"""Cuts and joins the routes of positions that follow each other."""

from collections.abc import Sequence

from octavo.engine.api import Routes


def split(routes: Routes, end: int) -> tuple[Routes, Routes]:
    """Returns the routes of the positions before `end`, and those of the rest. Either may have no positions."""
    count = min(max(end - routes.start, 0), routes.count)
    ids, weights = (count * len(each) // max(routes.count, 1) for each in (routes.ids, routes.weights))
    before = Routes(routes.start, count, routes.ids[:ids], routes.weights[:weights])
    after = Routes(routes.start + count, routes.count - count, routes.ids[ids:], routes.weights[weights:])
    return before, after


def joined(routes: Sequence[Routes]) -> Routes | None:
    """Returns the routes of consecutive stretches as those of one; None if there is no stretch."""
    if not routes:
        return None
    ids, weights = b"".join(each.ids for each in routes), b"".join(each.weights for each in routes)
    return Routes(routes[0].start, sum(each.count for each in routes), ids, weights)
