"""Tries grammars in a process of their own, which is killed when one takes too much time or memory.

llguidance counts its work and gives up, but it does not count all of it: each step of a chain of references can double
the cost of the next one, so that a schema of two kilobytes never ends. A grammar that passes here takes the engine as
little time to compile.
"""

import asyncio
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.engine.api import Grammar
from octavo.engine.process.stop_signals import ignore_stop_signals, start_with_stop_signals_blocked

MAX_TEXT = 128 * 1024  # characters of a grammar
CHECK_SECONDS = 3.0  # time to compile a grammar
START_SECONDS = 60.0  # time for the process to read the tokenizer
CHECK_MEMORY = 2**30  # bytes of address space; an interpreter with a vocabulary takes a third of it
MAX_QUEUE = 32  # grammars that are tried or wait
REMEMBERED = 1024  # verdicts
TOO_SLOW = f"The grammar takes more than {CHECK_SECONDS:g} seconds to compile; simplify it."
TOO_LARGE = "The grammar takes too much memory to compile; simplify it."


class Crowded(Exception):
    """Says that too many grammars wait to be tried."""


class Closed(Exception):
    """Says that no more grammars are tried."""


@dataclass(slots=True)
class _Trial:
    """A trial is of one grammar, and all who ask for that meanwhile share it: the requests of a batch come together."""

    ending: asyncio.Future[tuple[str | None, bool]]  # the verdict, and whether the process survived it
    waiting: int = 0  # how many wait for it; with nobody left the trial is given up


class GrammarChecker:
    """Says whether grammars can be used. It lives on one event loop; its process starts with the first grammar."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, "grammar checker")
        self._child: _Child | None = None  # Only the thread uses it, but for `close`.
        self._closed = False
        self._trials: dict[Grammar, _Trial] = {}
        self._verdicts: OrderedDict[Grammar, str | None] = OrderedDict()  # least recently used first

    async def check(self, grammar: Grammar, eos_token_ids: Sequence[int]) -> str | None:
        """Returns None when the grammar can be used, else a sentence for its author. Raises Crowded or Closed."""
        if len(grammar.text) > MAX_TEXT:
            return f"The grammar has {len(grammar.text)} characters and {MAX_TEXT} are allowed; shorten it."
        if grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            return self._verdicts[grammar]
        trial = self._trials.get(grammar) or self._begin(grammar, tuple(eos_token_ids))
        trial.waiting += 1
        try:
            verdict, survived = await asyncio.shield(trial.ending)
        finally:
            trial.waiting -= 1
            if not trial.waiting:
                del self._trials[grammar]
                trial.ending.cancel()
        if survived:  # Otherwise the machine may just have been busy, and the verdict is not kept.
            self._verdicts[grammar] = verdict
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        return verdict

    def _begin(self, grammar: Grammar, eos_token_ids: tuple[int, ...]) -> _Trial:
        if self._closed:
            raise Closed
        if len(self._trials) == MAX_QUEUE:
            raise Crowded
        loop = asyncio.get_running_loop()
        trial = self._trials[grammar] = _Trial(loop.run_in_executor(self._thread, self._ask, grammar, eos_token_ids))
        return trial

    def _ask(self, grammar: Grammar, eos_token_ids: tuple[int, ...]) -> tuple[str | None, bool]:
        """Returns the verdict, and whether the process has survived it; if not, the next grammar gets another one.

        It runs in the thread. Raises Closed, since the end of a process that `close` killed says nothing of a grammar.
        """
        if self._child is None:
            self._child = _Child(self._tokenizer, eos_token_ids)
        if self._closed:
            self._child.kill()  # It was started too late for `close` to see it.
            raise Closed
        verdict, survived = self._child.ask(grammar)
        if self._closed:
            raise Closed
        if not survived:
            self._child.kill()
            self._child = None
        return verdict, survived

    def close(self) -> None:
        """Ends the process, whatever it is doing. Those who wait for a verdict get Closed."""
        self._closed = True
        self._thread.shutdown(wait=False)
        if (child := self._child) is not None:
            child.kill()


class _Child:
    """A _Child is the process as its parent sees it."""

    def __init__(self, tokenizer: Path, eos_token_ids: tuple[int, ...]) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=main, args=(theirs, tokenizer, eos_token_ids), name="octavo-grammars", daemon=True
        )
        start_with_stop_signals_blocked(self._process)
        theirs.close()  # Only the child has it now, so that its death is seen as end-of-file.
        self._is_ready = False

    def ask(self, grammar: Grammar) -> tuple[str | None, bool]:
        """Returns the verdict, and whether the process can be asked again."""
        try:
            if not self._is_ready:
                refusal: str | None = self._receive(START_SECONDS)
                if refusal is not None:
                    return refusal, False
                self._is_ready = True
            self._connection.send(grammar)
            return self._receive(CHECK_SECONDS), True
        except TimeoutError:
            return TOO_SLOW, False
        except (EOFError, OSError):
            return TOO_LARGE, False

    def _receive(self, seconds: float) -> str | None:
        if not self._connection.poll(seconds):
            raise TimeoutError
        verdict: str | None = self._connection.recv()
        return verdict

    def kill(self) -> None:
        self._process.kill()


def main(connection: "Connection[Any, Any]", tokenizer: Path, eos_token_ids: tuple[int, ...]) -> None:
    """Runs in the process: sends a verdict for each grammar until the parent is gone."""
    ignore_stop_signals()
    with suppress(ValueError, OSError):  # Not every system bounds the memory of a process.
        resource.setrlimit(resource.RLIMIT_AS, (CHECK_MEMORY, CHECK_MEMORY))
    inbox: SimpleQueue[Grammar] = SimpleQueue()
    Thread(target=_read, args=(connection, inbox), name="reader", daemon=True).start()
    from octavo.engine.compute.compiler import Compiler, GrammarError

    try:
        compiler = Compiler(tokenizer, eos_token_ids)
    except GrammarError as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        try:
            compiler.compile(inbox.get())
            connection.send(None)
        except GrammarError as error:
            connection.send(str(error))


def _read(connection: "Connection[Any, Any]", inbox: "SimpleQueue[Grammar]") -> None:
    """Receives grammars while the compiler works, which cannot be interrupted; ends the process with its parent."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
