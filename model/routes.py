"""Holds which experts the tokens of a forward pass are sent to: the routers' choices, and what changes them."""

from dataclasses import dataclass

import torch
from torch import Tensor

SHORT_IDS = 256  # A model of up to so many experts has ids of one byte.


def id_type(experts: int) -> torch.dtype:
    """Returns the shortest dtype that holds the ids of so many experts."""
    return torch.uint8 if experts <= SHORT_IDS else torch.int16


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes are the choices of all routers for T tokens, in the short types in which they are kept.

    There are L routers, one for each sparse layer. A token's k experts come in the order in which they were chosen.
    """

    ids: Tensor  # [T, L, k], of id_type
    weights: Tensor  # [T, L, k] float16

    def to_host(self, tokens: int) -> "Routes":
        """Copies those of the first tokens, and waits for no device: the copy is there when the device has come so far.

        A CUDA graph overwrites its routes. So they are copied in every case, even from a CPU.
        """
        ids, weights = (each[:tokens].to("cpu", non_blocking=True, copy=True) for each in (self.ids, self.weights))
        return Routes(ids, weights)


class Routing:
    """A Routing goes through the layers with a batch: each router takes its addend from it and tells it its choice."""

    def __init__(self, addends: Tensor | None = None) -> None:
        """Takes what is added to the logits of each router, [L, T, E] float32; None: they stay as they are."""
        self.addends = addends
        self.heard = 0  # how many routers have told their choice
        self._choices: list[tuple[Tensor, Tensor]] = []  # ids and weights [n, T, k], of n routers each

    def addend(self) -> Tensor | None:
        """Returns what is added to the logits [T, E] of the router that comes next, if anything is."""
        return None if self.addends is None else self.addends[self.heard]

    def tell(self, ids: Tensor, weights: Tensor) -> None:
        """Takes the choice of the next router: ids [T, k] and weights [T, k]. They must not change any more."""
        self.tell_all(ids[None], weights[None])

    def tell_all(self, ids: Tensor, weights: Tensor) -> None:
        """Takes the choices of the next n routers: ids [n, T, k] and weights [n, T, k]."""
        self._choices.append((ids, weights))
        self.heard += len(ids)

    def routes(self, experts: int) -> Routes | None:
        """Returns the choices of all routers, each of which has so many experts; returns None if there are none."""
        if not self.heard:
            return None
        ids, weights = (_in_one(each) for each in zip(*self._choices, strict=True))  # [L, T, k]
        return Routes(_by_token(ids, id_type(experts)), _by_token(weights, torch.float16))


def _in_one(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_token(choices: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies choices [L, T, k] to [T, L, k] of another type."""
    layers, tokens, top_k = choices.shape
    return choices.new_empty(tokens, layers, top_k, dtype=dtype).copy_(choices.transpose(0, 1))
