"""Tries grammars before they are admitted, in processes that are killed when one takes too much time or memory.

Callers take turns. A caller has one of two processes at most. So one that sends slow grammars delays its own, and
leaves a process for the others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from octavo.engine.api import Grammar
from octavo.engine.child import Child, Died, NotStarted, TooSlow
from octavo.engine.config import ReadsText
from octavo.engine.process.trial_process import verdicts
from octavo.engine.schedule.turns import Turns

MAX_TEXT = 128 * 1024  # characters of a grammar
MAX_QUEUE = 32  # grammars of one caller that wait or are tried
MAX_QUEUES = 256  # grammars of all callers that wait
REMEMBERED = 1024  # verdicts
CHECK_SECONDS = 3.0  # time to compile a grammar
TOO_SLOW = f"The grammar takes more than {CHECK_SECONDS:g} seconds to compile; simplify it."
TOO_LARGE = "The grammar takes too much memory to compile; simplify it."
NOT_STARTED = "The process that tries grammars did not start; try again soon."
PROCESSES = 2  # The second is started when one caller's grammar is tried and another's waits.


class Crowded(Exception):
    """Says that too many grammars wait to be tried."""


class Closed(Exception):
    """Says that no more grammars are tried."""


@dataclass(slots=True, eq=False)
class _Trial:
    """A trial is of one grammar, and all who ask for that meanwhile share it: the requests of a batch come together."""

    grammar: Grammar
    eos_token_ids: tuple[int, ...]
    ending: "asyncio.Future[tuple[str | None, bool]]"  # the verdict, and whether the process survived it
    callers: set[str]
    waiting: int = 0  # how many wait for it; with nobody left the trial is given up
    has_begun: bool = False


@dataclass(slots=True, eq=False)
class _Place:
    """A place is for one process, which is started with the first grammar. One trial at a time uses it."""

    process: Child | None = None


class GrammarChecker:
    """Says whether grammars can be used. It lives on one event loop."""

    def __init__(self, tokenizer: ReadsText, sampled_vocab: int | None = None) -> None:
        """Token ids from `sampled_vocab` on are never sampled; None: all are."""
        self._tokenizer = tokenizer
        self._sampled_vocab = sampled_vocab
        self._threads = ThreadPoolExecutor(PROCESSES, "grammar checker")
        self._places = [_Place() for _ in range(PROCESSES)]
        self._free = list(self._places)
        self._turns: Turns[_Trial] = Turns()
        self._tried: set[str] = set()  # the callers whose grammars are tried now
        self._closed = False
        self._trials: dict[Grammar, _Trial] = {}
        self._verdicts: OrderedDict[Grammar, str | None] = OrderedDict()  # least recently used first

    async def check(self, grammar: Grammar, eos_token_ids: Sequence[int], caller: str = "") -> str | None:
        """Returns None when the grammar can be used, else a sentence for its author. Raises Crowded or Closed."""
        if len(grammar.text) > MAX_TEXT:
            return f"The grammar has {len(grammar.text)} characters and {MAX_TEXT} are allowed; shorten it."
        if grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            return self._verdicts[grammar]
        trial = self._join(grammar, tuple(eos_token_ids), caller)
        trial.waiting += 1
        try:
            verdict, survived = await asyncio.shield(trial.ending)
        finally:
            trial.waiting -= 1
            if not trial.waiting:
                self._trials.pop(grammar, None)
                trial.ending.cancel()
        if survived:  # Otherwise the machine may just have been busy, and the verdict is not kept.
            self._verdicts[grammar] = verdict
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        return verdict

    def _join(self, grammar: Grammar, eos_token_ids: tuple[int, ...], caller: str) -> _Trial:
        """Returns the trial of a grammar. It waits in the queue of each caller, and begins with the first turn."""
        if self._closed:
            raise Closed
        trial = self._trials.get(grammar)
        if trial is not None and (trial.has_begun or caller in trial.callers):
            return trial
        # The one that is tried counts, too.
        if self._turns.waiting(caller) + (caller in self._tried) >= MAX_QUEUE or len(self._turns) >= MAX_QUEUES:
            raise Crowded
        if trial is None:
            trial = _Trial(grammar, eos_token_ids, asyncio.get_running_loop().create_future(), set())
            self._trials[grammar] = trial
        trial.callers.add(caller)
        self._turns.add(caller, trial)
        self._begin_trials()
        return trial

    def _begin_trials(self) -> None:
        """Gives each free process to the next caller that has none."""
        while self._free and (turn := self._turns.take(self._tried)) is not None:
            caller, trial = turn
            if trial.has_begun or trial.ending.done():
                continue
            trial.has_begun = True
            self._tried.add(caller)
            self._start(trial, caller, self._free.pop())

    def _start(self, trial: _Trial, caller: str, place: _Place) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._threads, self._ask, place, trial.grammar, trial.eos_token_ids)

        def end(asked: "asyncio.Future[tuple[str | None, bool]]") -> None:
            self._free.append(place)
            self._tried.discard(caller)
            error = Closed() if asked.cancelled() else asked.exception()
            if not trial.ending.done():
                if error is None:
                    trial.ending.set_result(asked.result())
                else:
                    trial.ending.set_exception(error)
            if not self._closed:
                self._begin_trials()

        asked.add_done_callback(end)

    def _ask(self, place: _Place, grammar: Grammar, eos_token_ids: tuple[int, ...]) -> tuple[str | None, bool]:
        """Returns the verdict, and whether the process has survived it; if not, the next grammar gets another one.

        It runs in a thread. Raises Closed, since the end of a process that `close` killed says nothing of a grammar.
        """
        if place.process is None or not place.process.is_alive():  # Somebody may have killed it while it was idle.
            place.process = Child(verdicts, self._tokenizer, eos_token_ids, self._sampled_vocab)
        if self._closed:
            place.process.kill()  # It was started too late for `close` to see it.
            raise Closed
        verdict, survived = _asked(place.process, grammar)
        if self._closed:
            raise Closed
        if not survived:
            place.process.kill()
            place.process = None
        return verdict, survived

    def close(self) -> None:
        """Ends the processes, whatever they are doing. Those who wait for a verdict get Closed."""
        self._closed = True
        self._threads.shutdown(wait=False)
        for place in self._places:
            if (process := place.process) is not None:
                process.kill()
        for trial in self._trials.values():
            if not trial.has_begun and not trial.ending.done():
                trial.ending.set_exception(Closed())


def _asked(process: Child, grammar: Grammar) -> tuple[str | None, bool]:
    try:
        return process.ask(grammar, CHECK_SECONDS), True
    except NotStarted:
        return NOT_STARTED, False
    except TooSlow:
        return TOO_SLOW, False
    except Died:
        return TOO_LARGE, False
