"""Grammars: where each output that is bound to one stands in it, and which tokens that allows next.

Compiling and masks run in threads, beside the forward pass.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import Grammar, Request
from octavo.engine.compute.compiler import Compiler, GrammarError, mask_of, why_refused
from octavo.engine.schedule.batch import Row, Sample

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 16  # compiled grammars that are kept for the next request; the largest take 80 MB each
MASK_THREADS = 4


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
        self._states[request_id] = _State(matcher, self._mask_threads.submit(mask_of, matcher))
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
            return Sample(None, error=why_refused(state.matcher))
        state.outputs += 1
        if state.matcher.is_stopped():
            return replace(sample, ended=True)
        state.mask = self._mask_threads.submit(mask_of, state.matcher)
        return sample
