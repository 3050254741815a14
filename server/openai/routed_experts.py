"""Writes which experts served each token, named and encoded as other servers do.

SGLang has one text for a whole answer, `sglext.routed_experts`: base64 of int32 [positions, layers, k]. vLLM has a
field `routed_experts` in each choice, whose array is a file of numpy's. Here each choice has the field, in SGLang's
encoding, so that its pieces in a stream can be joined; and the first choice's is told as SGLang does, too.
Sources: SGLang's openai/protocol.py and openai/serving_chat.py; vLLM's openai/chat_completion/protocol.py.
"""

import base64
from collections.abc import Sequence

from typing_extensions import TypedDict

from octavo.engine.api import Routes
from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job
from octavo.server.generation.routes import joined


class SglExt(TypedDict):
    """Has the experts of the first choice, where SGLang's clients look for them."""

    routed_experts: str


class Extension(TypedDict, total=False):
    """Is what SGLang adds to the object around the choices."""

    sglext: SglExt


class RoutedFields(TypedDict, total=False):
    """Both are base64: int32 ids and float32 weights, little endian [positions, sparse layers, experts of a token]."""

    routed_experts: str
    routed_experts_weights: str


def asks_for_routes(job: Job) -> bool:
    """Returns whether the answer tells which experts served its tokens."""
    return job.choices[0].request.params.routes_from is not None


def routed_fields(routes: Sequence[Routes]) -> RoutedFields:
    """Returns the fields that tell of consecutive positions."""
    known = joined(routes) or Routes(0, 0, b"", b"")
    return {"routed_experts": _base64(known.ids), "routed_experts_weights": _base64(known.weights)}


def sglext(routes: Sequence[Routes]) -> SglExt:
    """Returns SGLang's object for the routes of the first choice."""
    return {"routed_experts": routed_fields(routes)["routed_experts"]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class StreamedRoutes:
    """StreamedRoutes keeps what a stream has to tell of routes until there is a chunk that may carry it."""

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self._untold: dict[int, list[Routes]] = {}  # index of a choice -> what no chunk has told
        self._first: list[Routes] = []  # all of the first choice's

    def feed(self, delta: Delta) -> None:
        """Takes what a delta tells."""
        if not self._asked:
            return
        self._untold.setdefault(delta.index, []).extend(delta.routes)
        if delta.index == 0:
            self._first += delta.routes

    def take(self, index: int) -> RoutedFields:
        """Returns the fields of a choice's next chunk, which are none if there is nothing new."""
        routes = self._untold.pop(index, [])
        return routed_fields(routes) if routes else {}

    def closing(self) -> Extension:
        """Returns the fields of the chunk after all choices: none if the client has not asked."""
        return {"sglext": sglext(self._first)} if self._asked else {}
