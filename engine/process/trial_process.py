"""Tries grammars in a process of its own, which is killed when one takes too much time or memory.

llguidance counts its work and gives up, but it does not count all of it: each step of a chain of references can double
the cost of the next one, so that a schema of two kilobytes never ends. A grammar that passes here takes the engine as
little time to compile. Like the engine, the process compiles in a thread, where deep grammars find as small a stack.
"""

import resource
from contextlib import suppress

from octavo.engine.api import Grammar
from octavo.engine.child import Answer
from octavo.engine.config import ReadsText

MEMORY = 2**30  # bytes of address space; an interpreter with a vocabulary takes a third of it


def verdicts(tokenizer: ReadsText, eos_token_ids: tuple[int, ...], sampled_vocab: int | None) -> Answer:
    """Returns what gives a verdict on a grammar: None when it can be used, else a sentence for its author."""
    with suppress(ValueError, OSError):  # Not every system bounds the memory of a process.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from octavo.engine.compute.compiler import Compiler, GrammarError

    try:
        compiler = Compiler(tokenizer, eos_token_ids, sampled_vocab)
    except GrammarError as error:
        refusal = str(error)
        return lambda grammar: refusal

    def verdict(grammar: Grammar) -> str | None:
        try:
            compiler.try_out(grammar)
        except GrammarError as error:
            return str(error)
        return None

    return verdict
