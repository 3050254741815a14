"""Grammars follow each output that is bound to one, and say which tokens it allows next.

Grammars are compiled and masks are computed in threads, beside the forward pass.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import Grammar, Request
from octavo.engine.compute.compiler import STUCK, Compiler, GrammarError, allowed_ids
from octavo.engine.compute.follower import Compiled, Follower
from octavo.engine.config import ReadsText
from octavo.engine.schedule.batch import Row, Sample
from octavo.engine.schedule.turns import Turns

KEPT = 16  # how many compiled grammars are kept for later requests; the largest take 80 MB each
COMPILE_THREADS = 2  # A caller has one of them at most, so that its slow grammars do not delay another's.
MASK_THREADS = 4


@dataclass(slots=True)
class _State:
    """A _State is where one output stands in its grammar."""

    follower: Follower
    mask: Future[bytes]  # which tokens may come next
    outputs: int = 0  # how many tokens the follower has taken in


class Grammars:
    """Grammars holds the grammars of the engine's requests. Only the engine's loop may call its public methods.

    step k      forward | allowed, sample, advance
    step k + 1                                     forward | allowed, sample, advance
    threads                                        mask of step k + 1
    """

    def __init__(
        self, tokenizer: ReadsText | None = None, eos_token_ids: Sequence[int] = (), sampled_vocab: int | None = None
    ) -> None:
        """Without a tokenizer, every grammar is refused.

        Token ids from `sampled_vocab` on are never sampled; None: all are.
        """
        self._sampled_vocab = sampled_vocab
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._compiler: Compiler | None = None  # made with the first grammar, since it takes half a second
        self._compiler_lock = Lock()
        self._matchers: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()  # the least recently used is first
        self._waiting: dict[str, tuple[Request, Future[Compiled]]] = {}  # by request id, in order of arrival
        self._states: dict[str, _State] = {}  # by request id
        self._turns: Turns[tuple[Grammar, Future[Compiled]]] = Turns()  # the grammars that nobody compiles yet
        self._compiling: dict[str, Future[None]] = {}  # by caller
        self._compile_threads = ThreadPoolExecutor(COMPILE_THREADS, "compiler")
        self._mask_threads = ThreadPoolExecutor(MASK_THREADS, "mask")

    @property
    def compiling(self) -> int:
        """Returns how many requests wait for their grammar."""
        return len(self._waiting)

    def compile(self, request: Request, grammar: Grammar) -> None:
        """Begins to compile the grammar of a request, unless it is there from an earlier request."""
        if grammar not in self._matchers:
            self._matchers[grammar] = Future()
            self._turns.add(request.caller, (grammar, self._matchers[grammar]))
            if len(self._matchers) > KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(grammar)
        self._waiting[request.id] = (request, self._matchers[grammar])
        self._give_turns()

    def _give_turns(self) -> None:
        """Gives each free thread to the next caller that has none."""
        self._compiling = {caller: task for caller, task in self._compiling.items() if not task.done()}
        while len(self._compiling) < COMPILE_THREADS and (turn := self._turns.take(self._compiling)) is not None:
            caller, (grammar, future) = turn
            self._compiling[caller] = self._compile_threads.submit(self._compile_into, grammar, future)

    def _compile_into(self, grammar: Grammar, future: Future[Compiled]) -> None:
        """Compiles a grammar, in a thread for that."""
        try:
            future.set_result(self._compile(grammar))
        except BaseException as error:  # A panic of the library is no Exception.
            future.set_exception(error)

    def _compile(self, grammar: Grammar) -> Compiled:
        """Raises GrammarError."""
        with self._compiler_lock:
            if self._compiler is None:
                if self._tokenizer is None:
                    raise GrammarError("The model has no tokenizer.json, which grammars need; leave the grammar out.")
                self._compiler = Compiler(self._tokenizer, self._eos_token_ids)
            compiler = self._compiler
        return Compiled(lambda: compiler.compile(grammar))

    def compiled(self, seconds: float) -> Iterator[tuple[Request, str | None]]:
        """Yields the requests whose grammar is compiled. When there is none, it waits up to so many seconds for one.

        Each comes with the error in its grammar. Where that is None, its output is bound to the grammar from now on.
        Those that the caller does not take come again with the next call.
        """
        self._give_turns()
        if self._waiting and seconds > 0:
            wait([future for _, future in self._waiting.values()], seconds, FIRST_COMPLETED)
        done = [(request, future) for request, future in self._waiting.values() if future.done()]
        for request, future in done:
            yield request, self._begin(request.id, future)

    def _begin(self, request_id: str, future: Future[Compiled]) -> str | None:
        """Binds a request to its compiled grammar, or returns the error in the grammar."""
        del self._waiting[request_id]
        try:
            follower = Follower(future.result())
        except GrammarError as error:
            return str(error)
        self._states[request_id] = _State(follower, self._mask_threads.submit(follower.mask))
        return None

    def forget(self, request_id: str) -> bool:
        """Drops what is kept for a request, if anything; returns whether it was still waiting for its grammar."""
        self._states.pop(request_id, None)
        return self._waiting.pop(request_id, None) is not None

    def allowed(self, rows: Sequence[Row]) -> NDArray[np.uint8] | None:
        """Returns which ids each row may choose, or None when no row is bound to a grammar.

        The masks are [R, bytes]: bit i % 8 of byte i // 8 is for id i.
        """
        masks = {index: mask for index, row in enumerate(rows) if (mask := self._mask_of(row)) is not None}
        if not masks:
            return None
        found = np.full((len(rows), len(next(iter(masks.values())))), 0xFF, np.uint8)
        for index, mask in masks.items():
            found[index] = np.frombuffer(mask, np.uint8)
        return found

    def _mask_of(self, row: Row) -> bytes | None:
        """Returns the mask of a row; returns None if the row is free, or the mask failed, which `advance` reports."""
        state = self._state(row)
        return None if state is None or state.mask.exception() is not None else state.mask.result()

    def _state(self, row: Row) -> _State | None:
        """Returns where the output of a row stands in its grammar; returns None if the row is free.

        It also returns None for a row whose token is known already, since it was preempted while it was sampled.
        """
        state = self._states.get(row.id)
        return state if state is not None and state.outputs == row.output else None

    def advance(self, rows: Sequence[Row], samples: Sequence[Sample]) -> list[Sample]:
        """Takes in the sampled tokens; returns the samples, changed where a grammar ends or fails."""
        return [self._advanced(row, sample) for row, sample in zip(rows, samples, strict=True)]

    def _advanced(self, row: Row, sample: Sample) -> Sample:
        """Takes in the token of one row, and begins to compute its next mask.

        An output whose grammar cannot be followed any further ends with what it has.
        """
        state = self._state(row)
        if state is None:
            return sample
        if (failure := state.mask.exception()) is not None:
            return replace(sample, token=None, ended=True, error=str(failure))
        if sample.token is None:
            is_stuck = not len(allowed_ids(state.mask.result(), self._sampled_vocab))
            return replace(sample, ended=True, error=STUCK) if is_stuck else sample
        try:
            is_fulfilled = state.follower.take(sample.token)
        except GrammarError as error:
            return replace(sample, token=None, ended=True, error=str(error))
        state.outputs += 1
        if is_fulfilled:
            return replace(sample, ended=True)
        state.mask = self._mask_threads.submit(state.follower.mask)
        return sample
