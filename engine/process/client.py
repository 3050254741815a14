"""ProcessClient is the EngineClient of an engine that runs in a process of its own."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from octavo.engine.api import (
    Abort,
    EngineStats,
    ExpertUse,
    Fatal,
    FinishReason,
    FromEngine,
    Grammar,
    Output,
    Progress,
    Ready,
    Request,
    StepOutputs,
)
from octavo.engine.client import (
    BadGrammar,
    Draining,
    EngineState,
    Failed,
    Loading,
    QueueFull,
    TooLong,
    Unavailable,
    UnknownToken,
    why_unavailable,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process.checker import Closed, Crowded, GrammarChecker
from octavo.engine.process.collector import Collector
from octavo.engine.process.death import OPEN_REQUEST_DIED, Died
from octavo.engine.process.main import Build
from octavo.engine.process.supervisor import Restarts, Supervisor

DEFAULT_RESTARTS = Restarts()
STOPPED = "The server is shutting down."  # Open requests end with this sentence when the engine is stopped.


class ProcessClient:
    """A ProcessClient is a ManagedEngine over an engine in its own process, which is started again when it dies.

    Everything but the constructor runs on one event loop. Nothing is sent twice: the requests that were open when the
    process died end with an error, because the process may have died of one of them.
    """

    def __init__(
        self,
        config: EngineConfig,
        build: Build,
        restarts: Restarts = DEFAULT_RESTARTS,
        watch: Callable[[EngineState], None] | None = None,
    ) -> None:
        """Starts nothing yet. `watch` is called with each new state.

        `build` must be picklable: a function of a module, or a partial of one.
        """
        self._supervisor = Supervisor(config, build, restarts, self._receive, lambda: bool(self._open))
        self._checker = GrammarChecker(config.tokenizer, config.sampled_vocab)
        self._watch = watch
        self._state: EngineState = Loading()
        self._ready: Ready | None = None
        self._stats = EngineStats()
        self._receive_use: list[Callable[[ExpertUse], None]] = []
        self._open: dict[str, Collector] = {}  # by request id; accepted, not ended and not given up
        self._idle = asyncio.Event()
        self._idle.set()
        self._supervision: asyncio.Task[None] | None = None

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def ready(self) -> Ready | None:
        return self._ready

    @property
    def open_requests(self) -> int:
        """Returns how many requests were accepted and have not ended."""
        return len(self._open)

    @property
    def engine_pid(self) -> int | None:
        """Returns the id of the engine process that runs now, for tests and operators; None between two."""
        return self._supervisor.pid

    def on_expert_use(self, receive: Callable[[ExpertUse], None]) -> None:
        """Calls `receive` with whatever this engine and later ones tell of the use of experts from now on."""
        self._receive_use.append(receive)

    def start(self) -> None:
        """Starts the engine process and keeps one running until `stop`; returns at once."""
        self._supervision = asyncio.create_task(self._supervise(), name="engine supervision")

    async def given_up(self) -> None:
        """Returns when the engine will not be started again and the state is Failed, or after `stop`."""
        if self._supervision is not None:
            await asyncio.wait([self._supervision])

    async def drain(self, timeout: float) -> None:
        """Takes no new requests; returns when the open ones have ended, after `timeout` seconds by an error."""
        self._begin_draining()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            self._fail_open(STOPPED)

    async def stop(self) -> None:
        """Ends the engine process, whatever it is doing, and with it every open request."""
        self._begin_draining()
        self._fail_open(STOPPED)
        self._checker.close()
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])
            if not self._supervision.cancelled():
                self._supervision.result()  # This raises if the supervision failed, which is a mistake in it.

    async def check(self, grammar: Grammar, caller: str = "") -> None:
        """Tries a grammar in a process of its own. Raises BadGrammar, QueueFull or Unavailable."""
        if not isinstance(self._state, Ready):
            raise Unavailable(why_unavailable(self._state))
        try:
            complaint = await self._checker.check(grammar, self._state.eos_token_ids, caller)
        except Crowded:
            raise QueueFull("Too many grammars are waiting to be compiled; try again later.") from None
        except Closed:
            raise Unavailable(why_unavailable(Draining())) from None
        if complaint is not None:
            raise BadGrammar(complaint)

    def check_room(self, wanted: int) -> None:
        """Raises QueueFull or Unavailable if so many requests could not be accepted now, whatever they ask for."""
        if not isinstance(self._state, Ready):
            raise Unavailable(why_unavailable(self._state))
        most = self._state.max_num_seqs + self._state.max_waiting
        if len(self._open) + wanted > most:
            raise QueueFull(f"The queue is full: at most {most:,} sequences run or wait at once; try again later.")

    def submit(self, requests: Sequence[Request]) -> Collector:
        """Accepts all of the requests or none. Raises TooLong, UnknownToken, QueueFull or Unavailable."""
        self._admit(requests)
        collector = Collector([request.id for request in requests], self._abandon)
        for request in requests:
            self._open[request.id] = collector
            self._supervisor.send(request)
        self._idle.clear()
        return collector

    def _admit(self, requests: Sequence[Request]) -> None:
        """Raises what `submit` raises, if the requests cannot be accepted now."""
        if not isinstance(self._state, Ready):
            raise Unavailable(why_unavailable(self._state))
        bounds = self._state
        if any(request.id in self._open for request in requests):
            raise ValueError("a request id is already in use")
        longest = max(len(request.prompt) + request.params.max_tokens for request in requests)
        if longest > bounds.max_model_len:
            raise TooLong(
                f"The prompt and max_tokens need {longest} tokens together, but the context has only "
                f"{bounds.max_model_len}; shorten the prompt or lower max_tokens."
            )
        highest = max(max(request.prompt, default=0) for request in requests)
        if bounds.vocab_size is not None and highest >= bounds.vocab_size:
            raise UnknownToken(
                f"The prompt has the token {highest}, and the model has no token beyond {bounds.vocab_size - 1}; "
                "leave its text out."
            )
        places = bounds.max_num_seqs + bounds.max_waiting
        if len(requests) > places:
            raise TooLong(f"The server takes {places} sequences at once, but this request asks for {len(requests)}.")
        self.check_room(len(requests))

    async def _supervise(self) -> None:
        error = await self._supervisor.run()
        if not isinstance(self._state, Draining):
            self._enter(Failed(error))

    def _receive(self, message: FromEngine | Died) -> None:
        match message:
            case StepOutputs():
                self._take(message)
            case Progress() if isinstance(self._state, Loading):
                self._enter(replace(self._state, progress=message))
            case Ready():
                self._ready = message
                if isinstance(self._state, Loading):
                    self._enter(message)
            case Fatal():
                self._enter(Failed(message.message))
            case Died(reason):
                self._stats = EngineStats()
                if isinstance(self._state, Loading | Ready):
                    self._enter(Loading(error=reason))
                self._fail_open(OPEN_REQUEST_DIED)

    def _take(self, step: StepOutputs) -> None:
        self._stats = step.stats
        for use in step.expert_use:
            for receive in self._receive_use:
                receive(use)
        for output in step.outputs:
            self._route(output)

    def _route(self, output: Output) -> None:
        """Hands the output to the reader of its request; one that nobody wants any more is dropped."""
        collector = self._open.get(output.id)
        if collector is None:
            return
        if output.finish_reason is not None:
            self._forget(output.id)
        collector.put(output)

    def _abandon(self, request_id: str) -> None:
        """Aborts a request that its reader has given up."""
        self._forget(request_id)
        self._supervisor.send(Abort(request_id))

    def _fail_open(self, message: str) -> None:
        """Ends every open request with the error."""
        for request_id in tuple(self._open):
            self._route(Output(request_id, finish_reason=FinishReason.ERROR, error=message))

    def _forget(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        if not self._open:
            self._idle.set()

    def _begin_draining(self) -> None:
        if not isinstance(self._state, Failed):
            self._enter(Draining())

    def _enter(self, state: EngineState) -> None:
        if state == self._state:
            return
        self._state = state
        if self._watch is not None:
            self._watch(state)
