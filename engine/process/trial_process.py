"""Compiles grammars in a process of its own, which is killed when one takes too much time or memory.

llguidance counts its work and gives up, but it does not count all of it: each step of a chain of references can double
the cost of the next one, so that a schema of two kilobytes never ends. A grammar that passes here takes the engine as
little time to compile.
"""

import os
import resource
import socket
import struct
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.engine.api import Grammar
from octavo.engine.config import ReadsText
from octavo.engine.process.stop_signals import ignore_stop_signals, start_with_stop_signals_blocked

CHECK_SECONDS = 3.0  # time to compile a grammar
START_SECONDS = 60.0  # time for the process to read the tokenizer
CHECK_MEMORY = 2**30  # bytes of address space; an interpreter with a vocabulary takes a third of it
TOO_SLOW = f"The grammar takes more than {CHECK_SECONDS:g} seconds to compile; simplify it."
TOO_LARGE = "The grammar takes too much memory to compile; simplify it."


class TrialProcess:
    """A TrialProcess is the process as its parent sees it. One thread at a time asks; any may kill."""

    def __init__(self, tokenizer: ReadsText, eos_token_ids: tuple[int, ...], sampled_vocab: int | None) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        _bound_waits(self._connection, CHECK_SECONDS)
        self._process = context.Process(
            target=main, args=(theirs, tokenizer, eos_token_ids, sampled_vocab), name="octavo-grammars", daemon=True
        )
        start_with_stop_signals_blocked(self._process)
        theirs.close()  # Only the child has it now, so that its death is seen as end-of-file.
        self._is_ready = False

    def ask(self, grammar: Grammar) -> tuple[str | None, bool]:
        """Returns the verdict on a grammar, and whether the process can be asked again.

        The verdict is None when the grammar can be used, else a sentence for its author.
        """
        try:
            if not self._is_ready:
                refusal: str | None = self._receive(START_SECONDS)
                if refusal is not None:
                    return refusal, False
                self._is_ready = True
            self._connection.send(grammar)
            return self._receive(CHECK_SECONDS), True
        except (TimeoutError, BlockingIOError):
            return TOO_SLOW, False
        except (EOFError, OSError):
            return TOO_LARGE, False

    def _receive(self, seconds: float) -> str | None:
        if not self._connection.poll(seconds):
            raise TimeoutError
        verdict: str | None = self._connection.recv()
        return verdict

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()


def _bound_waits(connection: "Connection[Any, Any]", seconds: float) -> None:
    """Makes sending raise BlockingIOError after `seconds` when the process takes nothing: it may have been stopped."""
    end = socket.socket(fileno=connection.fileno())
    try:
        time = struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)
    finally:
        end.detach()


def main(
    connection: "Connection[Any, Any]", tokenizer: ReadsText, eos_token_ids: tuple[int, ...], sampled_vocab: int | None
) -> None:
    """Runs in the process: sends a verdict for each grammar until the parent is gone."""
    ignore_stop_signals()
    with suppress(ValueError, OSError):  # Not every system bounds the memory of a process.
        resource.setrlimit(resource.RLIMIT_AS, (CHECK_MEMORY, CHECK_MEMORY))
    inbox: SimpleQueue[Grammar] = SimpleQueue()
    # Grammars are compiled in a thread here as in the engine, so that deep ones find as small a stack.
    arguments = (connection, inbox, tokenizer, eos_token_ids, sampled_vocab)
    Thread(target=_give_verdicts, args=arguments, name="compiler", daemon=True).start()
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # The compiler cannot be interrupted.


def _give_verdicts(
    connection: "Connection[Any, Any]",
    inbox: "SimpleQueue[Grammar]",
    tokenizer: ReadsText,
    eos_token_ids: tuple[int, ...],
    sampled_vocab: int | None,
) -> None:
    from octavo.engine.compute.compiler import Compiler, GrammarError

    try:
        compiler = Compiler(tokenizer, eos_token_ids, sampled_vocab)
    except GrammarError as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        try:
            compiler.try_out(inbox.get())
            connection.send(None)
        except GrammarError as error:
            connection.send(str(error))
        except MemoryError:
            os._exit(1)
