"""Runs in the process that reads large bodies, within limits of memory, and at a lower priority than the engine."""

import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.engine.child import Answer
from octavo.server.config import ServerConfig
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.texts import Texts
from octavo.server.http.errors import ApiError, BodyTooLarge
from octavo.server.text.template_process import TemplateProcess
from octavo.server.text.tokenizer import Tokenizer

MEMORY = 128 * 1024 * 1024  # bytes by which the process may grow while it reads
NICENESS = 10  # The engine goes first.

Question = tuple[Callable[..., Any], bytes, tuple[Any, ...]]  # a function of a module, a body, and further arguments


@dataclass(frozen=True, slots=True)
class Crashed:
    """Says that reading failed through a mistake of ours."""

    traceback: str


@dataclass(frozen=True, slots=True)
class Reply:
    value: Any = None  # what was asked for, an ApiError or Crashed
    grown: int = 0  # bytes that the process holds beyond those of its start


def answers(directory: Path, config: ServerConfig) -> Answer:
    """Returns what answers questions."""
    with suppress(OSError):
        os.nice(NICENESS)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    tokenizer = Tokenizer.from_directory(directory)
    texts = Texts(tokenizer, config, ParameterCheck(), template_process=TemplateProcess(tokenizer.special_tokens))
    _bound_memory()
    start = _resident()

    def answer(question: Question) -> Reply:
        value = _value(texts, *question)
        return Reply(value, _resident() - start)

    return answer


def _value(texts: Texts, prepare: Callable[..., Any], body: bytes, arguments: tuple[Any, ...]) -> Any:
    try:
        return prepare(texts, body, *arguments)
    except ApiError as error:
        return error.with_traceback(None)
    except MemoryError:
        return BodyTooLarge("The body takes too much memory to read; shorten it.")
    except Exception:
        return Crashed(traceback.format_exc())


def _bound_memory() -> None:
    """Lets the process grow by MEMORY at most. Where the system cannot bound it, nothing is bounded."""
    with suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = int(fields["VmData"].split()[0]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _resident() -> int:
    """Returns the bytes of memory that the process holds; 0 where that cannot be known."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
