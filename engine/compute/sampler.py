"""From logits to samples: the rows' edits and grammars before a token is drawn, their log-probabilities after it.

    draw     launches everything and waits for nothing: the tokens are on the device for the step after this one
    samples  waits for the copy that `draw` has sent to the host, and for no step that was launched meanwhile

How a token is drawn is the model's operation (model/ops/sampling.py); noise, edits and masks are made on the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from octavo.engine.api import TokenLogprobs
from octavo.engine.compute.edits import edits
from octavo.engine.compute.noise import uniforms
from octavo.engine.schedule.batch import Row, Sample
from octavo.model.ops import sampling
from octavo.model.ops.sampling import GREEDY, rank

Draw = Callable[[Tensor, Tensor], Tensor]  # as model.ops.sampling.draw
Told = dict[int, TokenLogprobs]  # by the index of the row


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step draws, perhaps before it is known."""

    tokens: Tensor  # [R] int64, on the device of the logits; -1: none
    # On the host, valid when `copied` has come: the tokens; then, for the rows that ask for log-probabilities, those of
    # their tokens [r], those of the likeliest tokens [r, C], and the ids of the likeliest [r, C].
    copies: tuple[Tensor, ...]
    asked: tuple[tuple[int, int], ...]  # (row, how many of the likeliest) of each that asks [r]
    copied: torch.Event | None  # None on a CPU, where copies are the tensors themselves

    def samples(self) -> list[Sample]:
        """One for each row. The only place that waits."""
        if self.copied is not None:
            self.copied.synchronize()
        ids, *logprobs = (copy.tolist() for copy in self.copies)
        told = {} if not logprobs else _told(self.asked, *logprobs)
        return [Sample(None) if token < 0 else Sample(token, told.get(row)) for row, token in enumerate(ids)]


def draw(
    logits: Tensor,
    rows: Sequence[Row],
    sampled_vocab: int,
    allowed: NDArray[np.uint8] | None = None,
    choose: Draw = sampling.draw,
) -> Drawn:
    """One token for each row of `logits` [R, V] float32; ids from `sampled_vocab` on are never chosen.

    `allowed` are the masks of the rows' grammars, [R, bytes], bit i % 8 of byte i // 8 for id i. `choose` is the seam
    that draws. A row whose maximum is NaN or infinite gets no token, and disturbs no other row.
    """
    edited = _edited(logits, rows, sampled_vocab)
    if allowed is not None:
        edited = _within(edited, logits, allowed, sampled_vocab)
    # Edited or not, rows are V apart, so that one compiled kernel serves all.
    tokens = choose(edited[:, :sampled_vocab], _uploaded(_controls(rows), logits.device))  # [R]
    asked = tuple((index, row.params.logprobs) for index, row in enumerate(rows) if row.params.logprobs is not None)
    found = (tokens, *(_logprobs(logits[:, :sampled_vocab], tokens, asked) if asked else ()))
    copies = tuple(each.to("cpu", non_blocking=True) for each in found)  # from a GPU, into pinned memory
    copied = None
    if logits.device.type == "cuda":
        copied = torch.Event(logits.device)
        copied.record()
    return Drawn(tokens, copies, asked, copied)


def _uploaded(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device, without waiting for what runs there: its memory is pinned until it has been copied."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _controls(rows: Sequence[Row]) -> NDArray[np.float64]:
    """The numbers that a draw needs, in one array, so that one copy takes them to the device. [R, 5]"""
    params = [row.params for row in rows]
    wanted = [(0.0, p.temperature, p.top_k, p.top_p, p.min_p) for p in params]
    controls = np.array(wanted, np.float64).reshape(-1, 5)
    drawn = [index for index, p in enumerate(params) if p.temperature >= GREEDY]
    if drawn:
        seeds, choices = [params[index].seed for index in drawn], [params[index].choice for index in drawn]
        controls[drawn, sampling.NOISE] = uniforms(seeds, choices, [rows[index].output or 0 for index in drawn])
    return controls


def _edited(logits: Tensor, rows: Sequence[Row], sampled_vocab: int) -> Tensor:
    """The logits [R, V] with the rows' penalties, biases and bans; the same tensor when there are none."""
    found = edits(rows, sampled_vocab)
    if found is None:
        return logits
    places = _uploaded(np.stack((found.rows, found.tokens)), logits.device).unbind()
    penalties, addends = _uploaded(np.stack((found.penalties, found.addends)), logits.device).unbind()
    cells = logits[places].double()  # [E]
    cells = torch.where(cells > 0, cells / penalties, cells * penalties) + addends
    return logits.index_put(places, cells.to(logits.dtype))


def _within(edited: Tensor, logits: Tensor, allowed: NDArray[np.uint8], sampled_vocab: int) -> Tensor:
    """The edited logits [R, V] without the tokens that the rows' grammars forbid.

    Where bans leave a grammar no token they give way: an output ends where its grammar does, min_tokens or not.
    """
    forbidden = _forbidden(allowed, logits)
    kept = edited.masked_fill(forbidden, -torch.inf)
    if edited is logits:
        return kept
    without = kept[:, :sampled_vocab].amax(-1, keepdim=True).isneginf()  # [R, 1]
    return kept.where(~without, logits.masked_fill(forbidden, -torch.inf))


def _forbidden(allowed: NDArray[np.uint8], logits: Tensor) -> Tensor:
    """What the masks do not allow: [R, bytes] -> [R, V] bool. Ids beyond the masks are forbidden."""
    vocab = logits.shape[-1]
    if logits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(allowed, axis=-1, count=vocab, bitorder="little") == 0)
    return ~_unpacked(_uploaded(allowed, logits.device), vocab)


def _unpacked(masks: Tensor, vocab: int) -> Tensor:
    """The bits of the masks, least significant first: [R, bytes] -> [R, V] bool; on a CPU numpy is far faster."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    columns = (masks[..., None] >> bits & 1).flatten(1)[:, :vocab]  # [R, <= V]
    return pad(columns, (0, vocab - columns.shape[-1])).bool()


def _logprobs(logits: Tensor, tokens: Tensor, asked: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows that ask, by the model's own distribution: their tokens' [r], the likeliest [r, C], and their ids."""
    index, counts = zip(*asked, strict=True)
    chosen = _uploaded(np.array(index), logits.device)
    scores = logits[chosen].log_softmax(-1)  # [r, V]
    sampled = scores.gather(-1, tokens[chosen, None].clamp(min=0)).squeeze(-1)
    return sampled, *rank(scores, min(max(counts), scores.shape[-1]))


def _told(
    asked: Sequence[tuple[int, int]], sampled: list[float], values: list[list[float]], ids: list[list[int]]
) -> Told:
    """The log-probabilities as plain data."""
    told = {}
    for (index, count), logprob, top, best in zip(asked, sampled, values, ids, strict=True):
        told[index] = TokenLogprobs(logprob, tuple(zip(best[:count], top[:count], strict=True)))
    return told


def score(logits: Tensor, targets: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log-probability and rank of given tokens by logits [S, V], and the `count` likeliest beside each.

    Equal ones rank by id. An id beyond V is never sampled, and so has no probability.
    """
    scores = logits.log_softmax(-1)  # [S, V]
    vocab = scores.shape[-1]
    ids = torch.tensor(targets, device=scores.device)[:, None]  # [S, 1]
    found = scores.gather(-1, ids.clamp(max=vocab - 1)).where(ids < vocab, -torch.inf)
    better = (scores > found) | ((scores == found) & (torch.arange(vocab, device=scores.device) < ids))
    ranks = (better.sum(-1) + 1).tolist()
    values, top = (each.tolist() for each in rank(scores, min(count, vocab)))
    rows = zip(found.squeeze(-1).tolist(), top, values, ranks, strict=True)
    return [TokenLogprobs(logprob, tuple(zip(i, v, strict=True)), rank) for logprob, i, v, rank in rows]
