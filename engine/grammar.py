"""What an output may look like: grammars become masks over the vocabulary, through the library llguidance.

The tokenizer is opaque here: a file that is handed on. Compiling and masks run in threads; the library lets go of the
interpreter's lock meanwhile. It loads with the first grammar.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.api import Grammar, Request
from engine.step import Row, Sample

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_REASON = 300  # characters of what the library says about a grammar
# Lower than llguidance's own: it would go on for longer than the rest of a batch should wait.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 1000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,  # a few milliseconds of one mask
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# Between the tokens of JSON. Bounded, since a model that has lost its way would write blanks until max_tokens.
JSON_BLANKS = r"[ \t\n\r]{1,40}"
ASCII_CLASSES = "dw"  # \d and \w mean what they do in JavaScript, and so in the patterns of JSON schemas
KEPT = 16  # compiled grammars that are kept for the next request; the largest take 80 MB each
MASK_THREADS = 4

STUCK = "No token of the model continues the output as its grammar wants; change the grammar."
_EXHAUSTED = re.compile(r"fuel|too (many|big|large)|limit|max is")  # the library's words for one of LIMITS


class GrammarError(Exception):
    """The grammar cannot be used; the message tells its author why."""


class Compiler:
    """Grammars over the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: Path, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is a tokenizer.json. Raises GrammarError when there is none, or none that can be used."""
        from llguidance import LLTokenizer

        try:
            text = tokenizer.read_text("utf-8")
            size = LLTokenizer(text).vocab_size
            self._tokenizer = LLTokenizer(text, eos_token=[id for id in eos_token_ids if id < size] or None)
        except (OSError, ValueError) as error:
            raise GrammarError("The model's tokenizer does not allow for grammars; leave the grammar out.") from error

    def compile(self, grammar: Grammar) -> "LLMatcher":
        """A matcher at its beginning, to be copied for each output. Raises GrammarError.

        Its first mask has been computed: it shows whether there is any output, and most of what makes masks slow.
        """
        from llguidance import LLMatcher, LLParserLimits

        try:
            source = _source(grammar)
        except (ValueError, RecursionError) as error:
            raise GrammarError(_sentence(str(error))) from error
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))
        passed_over = next((w for w in matcher.get_grammar_warnings() if w.startswith("Unimplemented")), None)
        if passed_over is not None:  # the schema asks the library to be "lenient": the output might not validate
            raise GrammarError(_sentence(passed_over))
        _mask(matcher)
        return matcher


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises ValueError."""
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


def _mask(matcher: "LLMatcher") -> bytes:
    """Which tokens may come next, a bit for each id, least significant first. Raises GrammarError.

    A matcher in error allows the end, as if its grammar were fulfilled.
    """
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(_sentence(matcher.get_error()))
    return mask


def _sentence(reason: str) -> str:
    """The library's reason, for a client who does not know of the library."""
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


@dataclass(slots=True)
class _State:
    """Where one output stands in its grammar."""

    matcher: "LLMatcher"
    mask: Future[bytes]  # of the next token
    outputs: int = 0  # tokens consumed


class Grammars:
    """The grammars of the requests that the engine has. All but what runs in its threads belongs to the engine's loop.

    step k      forward | allowed, sample, advance        the mask of step k + 1 is computed from `advance` on, while
    step k+1                               forward | ...  the next forward pass runs
    """

    def __init__(self, tokenizer: Path | None = None, eos_token_ids: Sequence[int] = ()) -> None:
        """Without a tokenizer every grammar is refused."""
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._compiler: Compiler | None = None  # made by the first grammar: it takes half a second
        self._matchers: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()  # least recently used first
        self._waiting: dict[str, tuple[Request, Future[LLMatcher]]] = {}  # by request id, in order of arrival
        self._states: dict[str, _State] = {}  # by request id
        self._compile_thread = ThreadPoolExecutor(1, "compiler")
        self._mask_threads = ThreadPoolExecutor(MASK_THREADS, "mask")

    @property
    def compiling(self) -> int:
        """How many requests wait for their grammar."""
        return len(self._waiting)

    def compile(self, request: Request, grammar: Grammar) -> None:
        """Begins to compile the grammar of a request, unless that was done for an earlier one."""
        if grammar not in self._matchers:
            self._matchers[grammar] = self._compile_thread.submit(self._compile, grammar)
            if len(self._matchers) > KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(grammar)
        self._waiting[request.id] = (request, self._matchers[grammar])

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        if self._compiler is None:
            if self._tokenizer is None:
                raise GrammarError("The model has no tokenizer.json, which grammars need; leave the grammar out.")
            self._compiler = Compiler(self._tokenizer, self._eos_token_ids)
        return self._compiler.compile(grammar)

    def compiled(self, seconds: float) -> list[tuple[Request, str | None]]:
        """The requests that wait no longer, each with what is wrong with its grammar, or bound to it from here on.

        When there is none, waits up to so many seconds for one.
        """
        if not self._waiting:
            return []
        wait([future for _, future in self._waiting.values()], seconds, FIRST_COMPLETED)
        done = [(request, future) for request, future in self._waiting.values() if future.done()]
        return [(request, self._begin(request.id, future)) for request, future in done]

    def _begin(self, request_id: str, future: "Future[LLMatcher]") -> str | None:
        del self._waiting[request_id]
        try:
            matcher = future.result().deep_copy()
        except GrammarError as error:
            return str(error)
        self._states[request_id] = _State(matcher, self._mask_threads.submit(_mask, matcher))
        return None

    def forget(self, request_id: str) -> bool:
        """Drops what is kept for a request, if anything; whether it was still waiting for its grammar."""
        self._states.pop(request_id, None)
        return self._waiting.pop(request_id, None) is not None

    def allowed(self, rows: Sequence[Row]) -> NDArray[np.uint8] | None:
        """Which ids each row may choose, [R, bytes], bit i % 8 of byte i // 8 for id i; None when no row is bound."""
        masks = {index: mask for index, row in enumerate(rows) if (mask := self._mask_of(row)) is not None}
        if not masks:
            return None
        found = np.full((len(rows), len(next(iter(masks.values())))), 0xFF, np.uint8)
        for index, mask in masks.items():
            found[index] = np.frombuffer(mask, np.uint8)
        return found

    def _mask_of(self, row: Row) -> bytes | None:
        """None when the row is free, or its mask could not be computed: `advance` will say so."""
        state = self._state(row)
        return None if state is None or state.mask.exception() is not None else state.mask.result()

    def _state(self, row: Row) -> _State | None:
        """None when the row is free, too, if its token is known already: it was preempted while it was sampled."""
        state = self._states.get(row.id)
        return state if state is not None and state.outputs == row.output else None

    def advance(self, rows: Sequence[Row], samples: Sequence[Sample]) -> list[Sample]:
        """Takes in the sampled tokens; a sample is changed where its grammar ends or fails."""
        return [self._advanced(row, sample) for row, sample in zip(rows, samples, strict=True)]

    def _advanced(self, row: Row, sample: Sample) -> Sample:
        state = self._state(row)
        if state is None or sample.token is None:
            return sample
        if (error := state.mask.exception()) is not None:
            return Sample(None, error=str(error))
        if not state.matcher.consume_token(sample.token):
            exhausted = _EXHAUSTED.search(state.matcher.get_error())
            return Sample(None, error=_sentence(exhausted[0]) if exhausted else STUCK)
        state.outputs += 1
        if state.matcher.is_stopped():
            return replace(sample, ended=True)
        state.mask = self._mask_threads.submit(_mask, state.matcher)
        return sample
