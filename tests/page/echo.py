"""Runs `octavo` with an engine whose answer is the last user message, one byte a step.

The command is `echo.py BEHAVIOUR-AS-JSON serve MODEL ...`. "{n}" in a message becomes the number of requests since the
engine's start, and at "{until NAME}" the answer waits until the test calls Server.release.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from octavo.engine.api import FinishReason, Output, Ready, Request
from octavo.engine.config import EngineConfig
from octavo.engine.process.main import Build, ReportProgress
from tests import fake_engine
from tests.fake_engine import Behaviour, FakeEngine
from tests.server.vocab import BYTES, EOS, ids_of

PAUSE = re.compile(r"\{until (\w+)\}")


class EchoEngine(FakeEngine):
    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(behaviour)
        self.requests = 0
        self.answers: dict[str, list[int]] = {}
        self.pauses: dict[str, dict[int, str]] = {}  # request id -> number of tokens -> what the next one waits for

    def add(self, request: Request) -> Output | None:
        self.requests += 1
        answer, self.pauses[request.id] = [], {}
        for index, part in enumerate(PAUSE.split(self._answer(request))):  # text, name, text, name, text
            if index % 2:
                self.pauses[request.id][len(answer)] = part
            else:
                answer += ids_of(part)
        self.answers[request.id] = [*answer, EOS]
        return super().add(request)

    def _answer(self, request: Request) -> str:
        """Returns the last user message; in the template of tests/server/vocab.py a turn is <role>content</s>."""
        prompt = bytes(id - BYTES if id >= BYTES else 0 for id in request.prompt).decode()
        said = re.findall(r"<user>([^\0]*)\0", prompt)
        return str(said[-1]).replace("{n}", str(self.requests))

    def is_held(self, request: Request, count: int) -> bool:
        name = self.pauses[request.id].get(count)
        return name is not None and not self.behaviour.lives.with_name(name).exists()

    def _next(self, request: Request, count: int) -> Output:
        answer = self.answers[request.id]
        ended = count + 1 in (len(answer), request.params.max_tokens)
        if ended:
            del self.running[request.id]
        else:
            self.running[request.id] = (request, count + 1)
        reason = FinishReason.STOP if answer[count] == EOS else FinishReason.LENGTH
        return Output(request.id, (answer[count],), finish_reason=reason if ended else None)


def echo_build(behaviour: Behaviour) -> Build:
    return partial(_build, behaviour)


def _build(behaviour: Behaviour, config: EngineConfig, report: ReportProgress) -> tuple[Any, Ready]:
    _, ready = fake_engine.fake_build(behaviour)(config, report)
    return EchoEngine(behaviour), ready


if __name__ == "__main__":
    import octavo.engine.startup.build
    from octavo.server.cli import main
    from tests.page.echo import echo_build as build  # the engine's process imports it by this name, not from __main__

    given = json.loads(sys.argv[1])
    octavo.engine.startup.build.build = build(Behaviour(**given | {"lives": Path(given["lives"])}))
    sys.exit(main(sys.argv[2:]))
