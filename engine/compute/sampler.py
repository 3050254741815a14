"""Makes samples of logits: it edits and masks them, has the tokens drawn, and looks up their log-probabilities.

    draw     launches everything and waits for nothing: the tokens are on the device for the step after this one
    samples  waits for the copy that `draw` has sent to the host, but for no step that was launched meanwhile

Drawing itself is an operation of the model (model/ops/sampling.py). Noise, edits and masks are made on the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from octavo.engine.api import TokenLogprobs
from octavo.engine.compute.edits import EditTables
from octavo.engine.compute.noise import uniforms
from octavo.engine.schedule.batch import Row, Sample
from octavo.model.ops import sampling
from octavo.model.ops.sampling import GREEDY, rank

Draw = Callable[[Tensor, Tensor], Tensor]  # does what model.ops.sampling.draw does
Told = dict[int, TokenLogprobs]  # index of the row -> the log-probabilities that it asked for


@dataclass(frozen=True, slots=True)
class Drawn:
    """Drawn holds the tokens that a step draws. The device may still be computing them."""

    tokens: Tensor  # [R] int64, on the device of the logits; -1: no token
    # The copies on the host are valid when `copied` has come. They are the tokens [R] and, if rows ask for
    # log-probabilities, those of their tokens [r], those of the likeliest tokens [r, C], and the likeliest ids [r, C].
    copies: tuple[Tensor, ...]
    asked: tuple[tuple[int, int], ...]  # (index, how many of the likeliest) of each row that asks [r]
    copied: torch.Event | None  # None on a CPU, where the copies are the tensors themselves

    def samples(self) -> list[Sample]:
        """Returns a sample for each row. Nothing else in this module waits."""
        if self.copied is not None:
            self.copied.synchronize()
        ids, *logprobs = (copy.tolist() for copy in self.copies)
        told = {} if not logprobs else _told(self.asked, *logprobs)
        return [Sample(None) if token < 0 else Sample(token, told.get(row)) for row, token in enumerate(ids)]


def draw(
    logits: Tensor,
    rows: Sequence[Row],
    sampled_vocab: int,
    allowed: NDArray[np.uint8] | None,
    choose: Draw,
    tables: EditTables | None = None,
) -> Drawn:
    """Draws a token for each row of `logits` [R, V] float32. Ids from `sampled_vocab` on are never chosen.

    `allowed` holds the masks of the rows' grammars, [R, bytes]: bit i % 8 of byte i // 8 is for id i. `choose` is the
    seam that draws. `tables` has the edits of the step before. A row whose maximum is NaN or infinite gets no token,
    and disturbs no other row.
    """
    edited = _edited(logits, rows, sampled_vocab, tables or EditTables())
    if allowed is not None:
        edited = _within(edited, logits, allowed, sampled_vocab)
    # Rows are V apart in memory, edited or not, so that one compiled kernel serves both.
    tokens = choose(edited[:, :sampled_vocab], _uploaded(_controls(rows), logits.device))  # [R]
    asked = tuple((index, row.params.logprobs) for index, row in enumerate(rows) if row.params.logprobs is not None)
    found = (tokens, *(_logprobs(logits[:, :sampled_vocab], tokens, asked) if asked else ()))
    copies = tuple(each.to("cpu", non_blocking=True) for each in found)  # copies from a GPU go to pinned memory
    copied = None
    if logits.device.type == "cuda":
        copied = torch.Event(logits.device)
        copied.record()
    return Drawn(tokens, copies, asked, copied)


def _uploaded(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copies an array to the device without waiting for what runs there: its memory is pinned until it is copied."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _controls(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Returns the numbers that a draw needs, in one array [R, 5], so that one copy takes them to the device."""
    params = [row.params for row in rows]
    wanted = [(0.0, p.temperature, p.top_k, p.top_p, p.min_p) for p in params]
    controls = np.array(wanted, np.float64).reshape(-1, 5)
    drawn = [index for index, p in enumerate(params) if p.temperature >= GREEDY]
    if drawn:
        seeds, choices = [params[index].seed for index in drawn], [params[index].choice for index in drawn]
        controls[drawn, sampling.NOISE] = uniforms(seeds, choices, [rows[index].output or 0 for index in drawn])
    return controls


def _edited(logits: Tensor, rows: Sequence[Row], sampled_vocab: int, tables: EditTables) -> Tensor:
    """Returns the logits [R, V] with the rows' penalties, biases and bans; the same tensor when there are none."""
    found = tables.edits(rows, sampled_vocab)
    if found is None:
        return logits
    places = _uploaded(np.stack((found.rows, found.tokens)), logits.device).unbind()
    penalties, addends = _uploaded(np.stack((found.penalties, found.addends)), logits.device).unbind()
    cells = logits[places].double()  # [E]
    cells = torch.where(cells > 0, cells / penalties, cells * penalties) + addends
    return logits.index_put(places, cells.to(logits.dtype))


def _within(edited: Tensor, logits: Tensor, allowed: NDArray[np.uint8], sampled_vocab: int) -> Tensor:
    """Returns the edited logits [R, V] with -inf for the tokens that the rows' grammars forbid.

    If edits and grammar together leave a row no token, the edits do not count: an output ends where its grammar does,
    even before min_tokens.
    """
    forbidden = _forbidden(allowed, logits)
    kept = edited.masked_fill(forbidden, -torch.inf)
    if edited is logits:
        return kept
    without = kept[:, :sampled_vocab].amax(-1, keepdim=True).isneginf()  # [R, 1]
    return kept.where(~without, logits.masked_fill(forbidden, -torch.inf))


def _forbidden(allowed: NDArray[np.uint8], logits: Tensor) -> Tensor:
    """Returns what the masks do not allow: [R, bytes] -> [R, V] bool. Ids beyond the masks are forbidden."""
    vocab = logits.shape[-1]
    if logits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(allowed, axis=-1, count=vocab, bitorder="little") == 0)
    return ~_unpacked(_uploaded(allowed, logits.device), vocab)


def _unpacked(masks: Tensor, vocab: int) -> Tensor:
    """Returns the bits of the masks, least significant first: [R, bytes] -> [R, V] bool. On a CPU, numpy is faster."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    columns = (masks[..., None] >> bits & 1).flatten(1)[:, :vocab]  # [R, <= V]
    return pad(columns, (0, vocab - columns.shape[-1])).bool()


def _logprobs(logits: Tensor, tokens: Tensor, asked: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log-probabilities by the model's own distribution, for the rows that ask.

    They are those of their tokens [r], those of the likeliest tokens [r, C], and the ids of the likeliest [r, C].
    """
    index, counts = zip(*asked, strict=True)
    chosen = _uploaded(np.array(index), logits.device)
    scores = logits[chosen].log_softmax(-1)  # [r, V]
    sampled = scores.gather(-1, tokens[chosen, None].clamp(min=0)).squeeze(-1)
    return sampled, *rank(scores, min(max(counts), scores.shape[-1]))


def _told(
    asked: Sequence[tuple[int, int]], sampled: list[float], values: list[list[float]], ids: list[list[int]]
) -> Told:
    """Returns the log-probabilities as plain data."""
    told = {}
    for (index, count), logprob, top, best in zip(asked, sampled, values, ids, strict=True):
        told[index] = TokenLogprobs(logprob, tuple(zip(best[:count], top[:count], strict=True)))
    return told


def score(logits: Tensor, targets: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Returns log-probability and rank of each target by its line of logits [S, V], and the `count` likeliest tokens.

    Equal logits rank by id. An id beyond V is never sampled, so its probability is 0.
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
