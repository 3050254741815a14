"""Grammars are tried in a process of their own, which is killed when one takes too much time or memory.

llguidance counts its work and gives up, but it does not count all of it: each step of a chain of references can double
what the next one costs, so that a schema of two kilobytes never ends. What was tried here, the engine compiles as fast.
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
CHECK_SECONDS = 3.0  # what compiling a grammar may take
START_SECONDS = 60.0  # what the process may take to read the tokenizer
CHECK_MEMORY = 2**30  # bytes of address space; an interpreter with a vocabulary takes a third of it
MAX_QUEUE = 32  # grammars that may wait to be tried
REMEMBERED = 1024  # verdicts
TOO_SLOW = f"The grammar takes more than {CHECK_SECONDS:g} seconds to compile; simplify it."
TOO_LARGE = "The grammar takes too much memory to compile; simplify it."


class Crowded(Exception):
    """Too many grammars wait to be tried."""


class Closed(Exception):
    """No more grammars are tried."""


@dataclass(slots=True)
class _Trial:
    """Of one grammar, for all who ask meanwhile: the first requests of a batch tend to come together."""

    ending: asyncio.Future[tuple[str | None, bool]]  # the verdict, and whether the process survived it
    waiting: int = 0  # for that; with nobody left the trial is given up


class GrammarChecker:
    """Says why a grammar cannot be used. It lives on one event loop; its process starts with the first grammar."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, "grammar checker")
        self._child: _Child | None = None  # the thread's own, but for `close`
        self._closed = False
        self._trials: dict[Grammar, _Trial] = {}
        self._verdicts: OrderedDict[Grammar, str | None] = OrderedDict()  # least recently used first

    async def check(self, grammar: Grammar, eos_token_ids: Sequence[int]) -> str | None:
        """None when the grammar can be used, else a sentence for its author. Raises Crowded or Closed."""
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
        if survived:  # else the machine may just have been busy
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
        """Thread: the verdict, and whether the process has survived it; else the next grammar gets another.

        Raises Closed: the end of a process that was killed by `close` says nothing about a grammar.
        """
        if self._child is None:
            self._child = _Child(self._tokenizer, eos_token_ids)
        if self._closed:
            self._child.kill()  # it was started too late for `close` to see it
            raise Closed
        verdict, survived = self._child.ask(grammar)
        if self._closed:
            raise Closed
        if not survived:
            self._child.kill()
            self._child = None
        return verdict, survived

    def close(self) -> None:
        """Ends the process, whatever it is doing; whoever waits for a verdict gets Closed."""
        self._closed = True
        self._thread.shutdown(wait=False)
        if (child := self._child) is not None:
            child.kill()


class _Child:
    """The process, from its parent's side."""

    def __init__(self, tokenizer: Path, eos_token_ids: tuple[int, ...]) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=main, args=(theirs, tokenizer, eos_token_ids), name="octavo-grammars", daemon=True
        )
        start_with_stop_signals_blocked(self._process)
        theirs.close()  # now the child's alone, so that its death is seen as end-of-file
        self._is_ready = False

    def ask(self, grammar: Grammar) -> tuple[str | None, bool]:
        """The verdict, and whether the process can be asked again."""
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
    """The process: a verdict for each grammar, until the parent is gone."""
    ignore_stop_signals()
    with suppress(ValueError, OSError):  # not every system bounds it
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
    """Runs beside the compiler, which cannot be interrupted: a parent that is gone takes this process with it."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
