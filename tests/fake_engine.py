"""FakeEngine is an engine without a model: it counts on from the prompt's last token, a token a step for a request.

A test that needs to see it half-way says where it waits (Behaviour.held) and lets it go on by a file, not by a delay.
"""

import os
import re
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from octavo.engine.api import EngineStats, FinishReason, Output, Progress, Ready, ReportProgress, Request, StepOutputs
from octavo.engine.config import EngineConfig
from octavo.engine.process.main import Build
from octavo.model.config import ModelError

# What the engine does with a prompt that starts with one of these tokens:
POISON = 13  # `add` raises.
CRASH = 66  # The next step raises.
HANG = 77  # The next step lasts for ever, and lets no other thread of the process run.
REFUSED = 99  # The request ends with an error at once.
# What may be held (see Behaviour.held):
LAST_TOKEN = "last-token"  # the last token of each request
RESTART = "restart"  # loading, in every life but the first
HANGS = "hangs"  # The engine makes this file beside `lives` when it begins to hang.
HELD_PAUSE = 0.01  # seconds between two looks at whether something is still held


VOCAB_SIZE = 10**9  # A prompt with a larger id is refused.


@dataclass(frozen=True)
class Behaviour:
    """Says how the fake engine behaves."""

    load_seconds: float = 0.0
    step_seconds: float = 0.0
    max_model_len: int = 10_000
    max_num_seqs: int = 4
    max_waiting: int = 4
    vocabulary: int = 10**12  # generated token ids are below this
    fatal: str | None = None  # the ModelError that loading ends with
    lives: Path | None = None  # the file to which each life appends its process id, one a line
    stillborn: tuple[int, ...] = ()  # the lives, counted from 0, that end while loading
    held: tuple[str, ...] = ()  # LAST_TOKEN, RESTART: each waits until there is a file of its name beside `lives`

    def holds(self, name: str) -> bool:
        """Returns whether this is held, and not released yet."""
        return name in self.held and not self.lives.with_name(name).exists()


class FakeEngine:
    """A FakeEngine is the StepLoop that a Behaviour describes."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.running: dict[str, tuple[Request, int]] = {}  # by request id, with the number of tokens generated
        self.waiting: deque[Request] = deque()

    def add(self, request: Request) -> Output | None:
        if request.prompt[0] == POISON:
            raise ValueError("poison")
        if request.prompt[0] == REFUSED:
            return Output(request.id, finish_reason=FinishReason.ERROR, error="refused by the engine")
        self.waiting.append(request)
        return None

    def abort(self, request_id: str) -> Output | None:
        self.running.pop(request_id, None)
        self.waiting = deque(request for request in self.waiting if request.id != request_id)
        return None

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def step(self) -> StepOutputs:
        if self.has_work():
            time.sleep(self.behaviour.step_seconds)
        while self.waiting and len(self.running) < self.behaviour.max_num_seqs:
            request = self.waiting.popleft()
            self.running[request.id] = (request, 0)
        going = [(request, count) for request, count in self.running.values() if not self.is_held(request, count)]
        if self.running and not going:
            time.sleep(HELD_PAUSE)
        outputs = tuple(self._next(request, count) for request, count in going)
        return StepOutputs(outputs, EngineStats(running=len(self.running), waiting=len(self.waiting)))

    def is_held(self, request: Request, count: int) -> bool:
        """Returns whether the next token of a request that has `count` tokens must wait."""
        return count + 1 == request.params.max_tokens and self.behaviour.holds(LAST_TOKEN)

    def _next(self, request: Request, count: int) -> Output:
        if request.prompt[0] == CRASH:
            raise ModelError("the step failed, as the prompt wished")
        if request.prompt[0] == HANG:
            hang(self.behaviour)
        ended = count + 1 >= request.params.max_tokens
        if ended:
            del self.running[request.id]
        else:
            self.running[request.id] = (request, count + 1)
        if request.params.max_tokens == 0:
            return Output(request.id, finish_reason=FinishReason.LENGTH)
        token = (request.prompt[-1] + 1 + count) % self.behaviour.vocabulary
        return Output(request.id, (token,), finish_reason=FinishReason.LENGTH if ended else None)


def hang(behaviour: Behaviour) -> None:
    """Never returns and keeps the GIL: the match takes two to the power of 99 attempts."""
    if behaviour.lives is not None:
        behaviour.lives.with_name(HANGS).touch()
    re.match("(a+)+$", "a" * 99 + "b")


def fake_build(behaviour: Behaviour) -> Build:
    """Returns a function that builds a fake engine; it can be pickled."""
    return partial(_build, behaviour)


def _build(behaviour: Behaviour, config: EngineConfig, report: ReportProgress) -> tuple[FakeEngine, Ready]:
    life = _begin_life(behaviour)
    if life in behaviour.stillborn:
        os._exit(7)
    while life > 0 and behaviour.holds(RESTART):
        time.sleep(HELD_PAUSE)
    _load(behaviour.load_seconds, report)
    if behaviour.fatal is not None:
        raise ModelError(behaviour.fatal)
    ready = Ready(
        max_model_len=behaviour.max_model_len,
        max_num_seqs=behaviour.max_num_seqs,
        max_waiting=behaviour.max_waiting,
        description=("a model that counts",),
        vocab_size=VOCAB_SIZE,
    )
    return FakeEngine(behaviour), ready


def _begin_life(behaviour: Behaviour) -> int:
    """Notes this life; returns its number, counted from 0."""
    if behaviour.lives is None:
        return 0
    with behaviour.lives.open("a+") as lives:
        lives.write(f"{os.getpid()}\n")
        lives.seek(0)
        return len(lives.readlines()) - 1


def _load(seconds: float, report: ReportProgress) -> None:
    ticks = 10
    for tick in range(ticks + 1):
        report(Progress("loading weights", tick, ticks))
        time.sleep(seconds / ticks)
