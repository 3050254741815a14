"""Compiler makes matchers of grammars over the model's vocabulary, with the library llguidance.

The tokenizer is only a file that is handed on to the library. The library releases the interpreter's lock while it
compiles and computes masks. It is imported with the first grammar.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.engine.api import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_REASON = 300  # characters of the library's message about a grammar
# These are lower than llguidance's own limits, which let it run for longer than the rest of a batch should wait.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 1000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,  # a few milliseconds for a mask
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# These blanks may stand between the tokens of JSON. They are bounded, since some models write blanks until max_tokens.
JSON_BLANKS = r"[ \t\n\r]{1,40}"
ASCII_CLASSES = "dw"  # \d and \w match ASCII only, as in JavaScript and so in the patterns of JSON schemas

STUCK = "No token of the model continues the output as its grammar wants; change the grammar."
_EXHAUSTED = re.compile(r"fuel|too (many|big|large)|limit|max is")  # the library says so when one of LIMITS is reached


class GrammarError(Exception):
    """A GrammarError says that a grammar cannot be used. Its message tells the grammar's author why."""


class Compiler:
    """A Compiler makes matchers over the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: Path, eos_token_ids: Sequence[int]) -> None:
        """Reads a tokenizer.json. Raises GrammarError when there is none, or it cannot be used."""
        from llguidance import LLTokenizer

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
            source = _source(grammar)
        except (ValueError, RecursionError) as error:
            raise GrammarError(_sentence(str(error))) from error
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))
        passed_over = next((w for w in matcher.get_grammar_warnings() if w.startswith("Unimplemented")), None)
        if passed_over is not None:  # the schema asked the library to be "lenient", and the output might not validate
            raise GrammarError(_sentence(passed_over))
        mask_of(matcher)
        return matcher


def _source(grammar: Grammar) -> str:
    """Returns the grammar in the form that llguidance reads. Raises ValueError."""
    from llguidance import LLMatcher, grammar_from, regex_to_lark

    match grammar.kind:
        case "json":
            return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": JSON_BLANKS})
        case "regex":
            return f"start: /{regex_to_lark(grammar.text, ASCII_CLASSES)}/"
        case "choice":
            return "start: " + " | ".join(json.dumps(choice) for choice in json.loads(grammar.text))
        case "grammar":
            return grammar_from("grammar", grammar.text)


def mask_of(matcher: "LLMatcher") -> bytes:
    """Returns which tokens may come next: a bit for each id, least significant first. Raises GrammarError.

    The error has to be asked for: a matcher in error allows the end, as if its grammar were fulfilled.
    """
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(_sentence(matcher.get_error()))
    return mask


def why_refused(matcher: "LLMatcher") -> str:
    """Returns why the matcher did not take the token that was sampled, in a sentence for a client."""
    exhausted = _EXHAUSTED.search(matcher.get_error())
    return _sentence(exhausted[0]) if exhausted else STUCK


def _sentence(reason: str) -> str:
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
        return "The grammar is too large or too ambiguous to be followed; simplify it."
    plain = " ".join(reason.split())
    return f"The grammar cannot be used: {plain[:MAX_REASON].rstrip('. ')}; correct it."
