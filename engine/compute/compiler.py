"""Compiler makes matchers of grammars over the model's vocabulary, with the library llguidance.

The tokenizer is only a file that is handed on to the library. The library releases the interpreter's lock while it
compiles and computes masks. It is imported with the first grammar.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.engine.api import Grammar
from octavo.engine.compute.sources import source
from octavo.engine.config import ReadsText

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_REASON = 300  # characters of the library's message about a grammar
# These are lower than llguidance's own limits, or as high where a larger grammar costs the others in the batch nothing.
# Beside them, each output has a limit of time (follower.py).
LIMITS: dict[str, Any] = {
    "max_items_in_row": 5000,  # a rule may have as many alternatives
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
WALKS, STEPS = 4, 24  # A grammar is tried by so many outputs of so many tokens.

STUCK = "No token of the model continues the output as its grammar wants; change the grammar."
EXHAUSTED = "The grammar is too large or too ambiguous to be followed; simplify it."
# The library says so when one of LIMITS is reached. "Token range end too large" is another matter.
_EXHAUSTED = re.compile(r"fuel|too (many|big)|(?<!end )too large|limit|max is")


class GrammarError(Exception):
    """A GrammarError says that a grammar cannot be used. Its message tells the grammar's author why."""


class Compiler:
    """A Compiler makes matchers over the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: ReadsText, eos_token_ids: Sequence[int], sampled_vocab: int | None = None) -> None:
        """Reads a tokenizer.json. Token ids from `sampled_vocab` on are never sampled; None: all are.

        Raises GrammarError when there is no tokenizer.json, or it cannot be used.
        """
        from llguidance import LLTokenizer

        self._sampled_vocab = sampled_vocab
        try:
            text = tokenizer.read_text("utf-8")
            size = LLTokenizer(text).vocab_size
            self._tokenizer = LLTokenizer(text, eos_token=[id for id in eos_token_ids if id < size] or None)
        except (OSError, ValueError) as error:
            raise GrammarError("The model's tokenizer does not allow for grammars; leave the grammar out.") from error

    def compile(self, grammar: Grammar) -> "LLMatcher":
        """Returns a matcher at its beginning, to be copied for each output. Raises GrammarError.

        Its first mask has been computed: that shows whether any output exists, and finds most grammars that are slow.
        """
        from llguidance import LLMatcher, LLParserLimits

        try:
            text = source(grammar)
        except RecursionError as error:
            raise GrammarError("The grammar is nested too deeply; simplify it.") from error
        except ValueError as error:
            raise GrammarError(sentence(str(error))) from error
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))
        passed_over = next((w for w in matcher.get_grammar_warnings() if w.startswith("Unimplemented")), None)
        if passed_over is not None:  # the schema asked the library to be "lenient", and the output might not validate
            raise GrammarError(sentence(passed_over))
        mask_of(matcher)
        return matcher

    def try_out(self, grammar: Grammar) -> None:
        """Compiles a grammar and follows some outputs of arbitrary tokens.

        Raises GrammarError when one of them reaches a limit, or when each of them comes to a place where no token can
        be sampled.
        """
        from octavo.engine.compute.follower import Compiled, Follower

        compiled, stuck = Compiled(lambda: self.compile(grammar)), 0
        for seed in range(WALKS):
            follower, random = Follower(compiled), Random(seed)
            for _ in range(STEPS):
                ids = allowed_ids(follower.mask(), self._sampled_vocab)
                if not len(ids):
                    stuck += 1
                    break
                if follower.take(int(ids[random.randrange(len(ids))])):
                    break
        if stuck == WALKS:
            raise GrammarError(STUCK)


def allowed_ids(mask: bytes, sampled_vocab: int | None) -> "np.ndarray[Any, np.dtype[np.intp]]":
    """Returns the ids that a mask allows and that can be sampled, in order."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:sampled_vocab])


def mask_of(matcher: "LLMatcher") -> bytes:
    """Returns which tokens may come next: a bit for each id, least significant first. Raises GrammarError.

    The error has to be asked for: a matcher in error allows the end, as if its grammar were fulfilled.
    """
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(sentence(matcher.get_error()))
    return mask


def why_refused(matcher: "LLMatcher") -> str:
    """Returns why the matcher did not take the token that was sampled, in a sentence for a client."""
    return EXHAUSTED if _EXHAUSTED.search(matcher.get_error()) else STUCK


def sentence(reason: str) -> str:
    """Returns the library's reason as a sentence for a client who does not know the library."""
    if (keys := re.search(r"Unimplemented keys: \[(.*?)\]", reason)) is not None:
        return f"These keywords of JSON schema are not supported: {keys[1]}; leave them out."
    if "coerce_one_of" in reason:
        return (
            "'oneOf' is supported only where no two of its schemas can match at once; use 'anyOf', or tell them apart "
            "by a required property with 'const'."
        )
    if "NoExtension" in reason:
        return "No output can follow this grammar; correct it."
    if _EXHAUSTED.search(reason):
        return EXHAUSTED
    if reason.endswith("."):  # It is a sentence of ours.
        return reason
    plain = " ".join(reason.split())
    return f"The grammar cannot be used: {plain[:MAX_REASON].rstrip('. ')}; correct it."
