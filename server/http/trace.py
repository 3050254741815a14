"""A Trace remembers one HTTP request, for its log line and its metrics, never for its answer."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope

_KEY = "octavo.trace"


@dataclass(slots=True)
class Trace:
    """Holds times in seconds of time.perf_counter(); None means that something has not happened."""

    request_id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    admitted: float | None = None  # when the engine accepted it
    first_token: float | None = None
    status: int = 0
    model: str = "-"
    response_id: str = "-"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)

    def attach(self, scope: Scope) -> None:
        scope[_KEY] = self

    @staticmethod
    def of(scope: Scope) -> "Trace":
        trace = scope[_KEY]
        assert isinstance(trace, Trace)
        return trace

    def admit(self, response_id: str, model: str) -> None:
        self.admitted = time.perf_counter()
        self.response_id = response_id
        self.model = model

    def line(self, now: float) -> str:
        """Returns the one log line of a request. It holds no text of prompts or answers."""
        parts = [f"{self.request_id} {self.method} {self.path} {self.status}"]
        if self.admitted is not None:
            counts = f"prompt={self.prompt_tokens} cached={self.cached_tokens} completion={self.completion_tokens}"
            parts.append(f"{self.response_id} model={self.model} {counts}")
            parts.append(f"admitted={self.admitted - self.started:.3f}s")
            if self.first_token is not None:
                parts.append(f"ttft={self.first_token - self.started:.3f}s")
            parts.append(f"finish={','.join(self.finish_reasons) or '-'}")
        parts.append(f"total={now - self.started:.3f}s")
        return " ".join(parts)
