"""Follows grammars without a model: what they take, and what arbitrary outputs of theirs are."""

from random import Random

import numpy as np

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler, allowed_ids
from tests.server.vocab import BYTES, EOS, ids_of

CLOSING = frozenset(ids_of('"}],:')) | {EOS}  # prefers these, since arbitrary strings would never end


def takes(compiler: Compiler, grammar: Grammar, text: str) -> bool:
    """Returns whether a text is an output of the grammar."""
    matcher = compiler.compile(grammar).deep_copy()
    ids = ids_of(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def sampled(compiler: Compiler, grammar: Grammar, seed: int, most: int = 2000) -> str:
    """Returns an arbitrary output of the grammar."""
    matcher, random = compiler.compile(grammar).deep_copy(), Random(seed)
    ids: list[int] = []
    while not matcher.is_stopped():
        allowed = allowed_ids(matcher.compute_bitmask(), None)
        closing = [id for id in allowed if id in CLOSING]
        ids.append(int(random.choice(closing if closing and random.random() < 0.7 else np.asarray(allowed))))
        assert matcher.consume_token(ids[-1]), matcher.get_error()
        assert len(ids) < most
    return bytes(id - BYTES for id in ids if id != EOS).decode()
