"""Writes the use of experts as a file of numpy's, for notebooks."""

import io

import numpy as np

from octavo.engine.api import ExpertShape
from octavo.server.experts.record import Snapshot


def npz(shape: ExpertShape, snapshot: Snapshot) -> bytes:
    """Returns a .npz file, which `numpy.load` reads. With L sparse layers, E experts and N topics it has these arrays:

    layers         int64 [L]         the layers of the decoder that are sparse
    top_k          int64 []          how many experts serve a token
    tokens         int64 []          how many tokens were counted
    counts         int64 [L, E]      how many of them each expert served
    repeats        int64 [L]         tokens whose first expert is also that of the token before
    topics         str [N]           labels; "" is that of requests without a topic
    topic_tokens, topic_counts, topic_repeats: the same by topic, [N], [N, L, E] and [N, L]
    """
    layers, tallies = len(shape.layers), list(snapshot.topics.values())
    file = io.BytesIO()
    np.savez_compressed(
        file,
        layers=np.array(shape.layers, np.int64),
        top_k=np.int64(shape.top_k),
        tokens=np.int64(snapshot.use.tokens),
        counts=snapshot.use.counts,
        repeats=snapshot.use.repeats,
        topics=np.array(list(snapshot.topics), np.str_),
        topic_tokens=np.array([tally.tokens for tally in tallies], np.int64),
        topic_counts=np.array([tally.counts for tally in tallies], np.int64).reshape(-1, layers, shape.experts),
        topic_repeats=np.array([tally.repeats for tally in tallies], np.int64).reshape(-1, layers),
    )
    return file.getvalue()
