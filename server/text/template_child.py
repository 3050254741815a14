"""Runs in the process that renders templates of clients, within limits of memory and time."""

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2

from octavo.engine.child import Answer
from octavo.server.http.errors import ApiError, InvalidRequest
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.turns import Turn

RENDER_SECONDS = 3.0  # time to compile and try a template, and as much to render it
MEMORY = 512 * 1024 * 1024  # bytes of address space; the interpreter takes a fifth of it
MAX_TEXT = 16 * 1024 * 1024  # characters of a prompt; the largest body has half of it
REMEMBERED = 8  # templates; most clients send the same one again and again
FIELD = "chat_template"
TOO_LARGE = "{param} takes too much memory to render; simplify it."
TOO_LONG = f"{{param}} renders to more than {MAX_TEXT} characters; simplify it."


@dataclass(frozen=True, slots=True)
class Question:
    """Asks what a template can render or, with a conversation, for the prompt."""

    source: str
    conversation: tuple[Sequence[Turn], Rendering] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    value: Any = None  # what was asked for, or an ApiError
    exhausted: bool = False  # the process should not be asked again


def answers(special_tokens: Mapping[str, str]) -> Answer:
    """Returns what answers questions. `special_tokens` are those that templates know by name."""
    with suppress(ValueError, OSError):  # Not every system bounds the memory of a process.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    template = lru_cache(REMEMBERED)(lambda source: ChatTemplate(source, special_tokens))

    def answer(question: Question) -> Reply:
        _bound_time()
        return _answer(template, question)

    return answer


def _answer(template: Any, question: Question) -> Reply:
    try:
        return Reply(_answered(template(question.source), question))
    except ApiError as error:
        return Reply(error.with_traceback(None))
    except MemoryError:
        return Reply(InvalidRequest(TOO_LARGE, FIELD), exhausted=True)
    except RecursionError:
        return Reply(InvalidRequest("{param} is nested too deeply; simplify it.", FIELD))
    except jinja2.TemplateSyntaxError as error:
        refusal = "{param} is broken at line {line}: {reason}."
        return Reply(InvalidRequest(refusal, FIELD, line=error.lineno, reason=str(error.message)))
    except Exception as error:  # A template may raise anything.
        return Reply(InvalidRequest("{param} cannot be rendered: {reason}.", FIELD, reason=str(error)))


def _answered(template: ChatTemplate, question: Question) -> Any:
    if question.conversation is None:
        return template.capabilities
    text = template.render(*question.conversation)
    if len(text) > MAX_TEXT:
        raise InvalidRequest(TOO_LONG, FIELD)
    return text


def _bound_time() -> None:
    """Lets the process run for RENDER_SECONDS more, should the parent be gone and its end not be noticed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + RENDER_SECONDS) + 2
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))
