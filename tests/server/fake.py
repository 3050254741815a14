"""A FakeEngineClient is an engine that replays given token ids."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from struct import pack

from octavo.engine.api import (
    EngineStats,
    ExpertShape,
    ExpertUse,
    FinishReason,
    Grammar,
    Output,
    Ready,
    Request,
    Routes,
    TokenLogprobs,
)
from octavo.engine.client import EngineState, QueueFull, Refused, Unavailable

READY = Ready(max_model_len=256, max_num_seqs=8, max_waiting=8, description=("fake",), eos_token_ids=(2,))
SHAPE = ExpertShape(layers=(0, 2), experts=4, top_k=2, identical=False)
SPARSE = replace(READY, experts=SHAPE)
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def outputs_of(request: Request, ids: Sequence[int], cached: int = 0) -> list[Output]:
    """Returns one output per token, up to a stop token or max_tokens, as an engine would."""
    outputs = _prompt_outputs(request)
    prompt, first = len(request.prompt), request.params.routes_from
    if request.params.max_tokens == 0:
        routes = _routes(first, 0, prompt)
        return [*outputs, Output(request.id, cached_tokens=cached, finish_reason=LENGTH, routes=routes)]
    kept = ids[: request.params.max_tokens]
    for position, id in enumerate(kept):
        stopped = id in request.params.stop_token_ids
        reason = STOP if stopped else LENGTH if position + 1 == len(kept) else None
        routes = _routes(first, 0 if position == 0 else prompt + position - 1, prompt + position)
        outputs.append(Output(request.id, (id,), _logprobs(request, id), cached, reason, routes=routes))
        if stopped:
            break
    return outputs


def _prompt_outputs(request: Request) -> list[Output]:
    """Returns the log-probabilities of the prompt's tokens, two in an output, as if it were computed in chunks."""
    wanted = request.params.prompt_logprobs
    scored = [] if wanted is None else [_scored(id, wanted) for id in request.prompt[1:]]
    return [Output(request.id, prompt_logprobs=tuple(scored[i : i + 2])) for i in range(0, len(scored), 2)]


def _routes(first: int | None, start: int, end: int) -> Routes | None:
    """Returns the routes of the positions from `start` on, as far as they are asked for: those from `first` on."""
    start = max(start, end if first is None else first)
    return routes_of(start, end) if start < end else None


def routes_of(start: int, end: int) -> Routes:
    """Makes up routes of the positions up to `end`, for SHAPE. They differ in neighbouring positions and layers."""
    ids = [(position + layer + place) % 4 for position in range(start, end) for layer in (0, 2) for place in (0, 1)]
    weights = [
        1 - 1 / (2 + position) if place == 0 else 1 / (2 + position)
        for position in range(start, end)
        for place in (0, 1, 0, 1)
    ]
    return Routes(start, end - start, pack(f"<{len(ids)}i", *ids), pack(f"<{len(weights)}f", *weights))


def _logprobs(request: Request, id: int) -> tuple[TokenLogprobs, ...]:
    return () if request.params.logprobs is None else (_scored(id, request.params.logprobs),)


def _scored(id: int, wanted: int) -> TokenLogprobs:
    """Makes up log-probabilities: the k ids after the token are the likelier ones."""
    return TokenLogprobs(-0.5 * wanted - 0.25, tuple((id + i, -0.5 * i) for i in range(1, wanted + 1)), wanted + 1)


@dataclass
class FakeGeneration:
    """Interleaves the requests' outputs. A None among them, or an end without a finish reason, waits for ever."""

    queues: dict[str, list[Output | None]]
    client: "FakeEngineClient"
    closed: bool = False

    def __aiter__(self) -> AsyncIterator[Output]:
        return self._outputs()

    async def _outputs(self) -> AsyncIterator[Output]:
        while self.queues:
            for id in list(self.queues):
                await asyncio.sleep(0)
                if id not in self.queues:
                    continue
                output = self.queues[id].pop(0) if self.queues[id] else None
                if output is None:
                    await asyncio.Event().wait()
                    raise AssertionError
                if output.finish_reason is not None:
                    del self.queues[id]
                yield output

    def abort(self, request_id: str) -> None:
        self.client.aborted.append(request_id)
        if not self.client.deliver_after_abort:
            self.queues.pop(request_id, None)

    def close(self) -> None:
        self.closed = True
        self.queues.clear()


Script = Callable[[Request], Iterable[Output | None]]


def replay(*choices: Sequence[int], cached: int = 0) -> Script:
    """Returns a script in which the k-th choice of each prompt gets the k-th sequence of ids."""
    return lambda request: outputs_of(request, choices[request.params.choice % len(choices)], cached)


@dataclass
class FakeEngineClient:
    """Implements engine.client.EngineClient and remembers what it was asked."""

    script: Script = field(default_factory=lambda: replay((65, 66, 67)))
    state: EngineState = READY
    stats: EngineStats = field(default_factory=EngineStats)
    refusal: Refused | None = None
    complaint: Refused | None = None  # raised for any grammar
    submitted: list[Request] = field(default_factory=list)
    checked: list[Grammar] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)  # who asked for each of them
    generations: list[FakeGeneration] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    receive_use: list[Callable[[ExpertUse], None]] = field(default_factory=list)
    deliver_after_abort: bool = False  # outputs still come after an abort, as if they had been on their way
    when_submitted: Callable[[], None] = lambda: None

    @property
    def ready(self) -> Ready | None:
        return self.state if isinstance(self.state, Ready) else None

    def on_expert_use(self, receive: Callable[[ExpertUse], None]) -> None:
        self.receive_use.append(receive)

    def tell(self, use: ExpertUse) -> None:
        """Tells the app of the use of experts, as a step of an engine does."""
        for receive in self.receive_use:
            receive(use)

    async def check(self, grammar: Grammar, caller: str = "") -> None:
        self.checked.append(grammar)
        self.callers.append(caller)
        if self.complaint is not None:
            raise self.complaint

    def check_room(self, wanted: int) -> None:
        if isinstance(self.refusal, QueueFull | Unavailable):
            raise self.refusal

    def submit(self, requests: Sequence[Request]) -> FakeGeneration:
        if self.refusal is not None:
            raise self.refusal
        self.submitted += requests
        generation = FakeGeneration({request.id: list(self.script(request)) for request in requests}, self)
        self.generations.append(generation)
        self.when_submitted()
        return generation
