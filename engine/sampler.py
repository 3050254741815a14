"""From logits to tokens: every row of the batch with its own temperature, filters, noise and log-probabilities.

A row's token is a function of its logits, its parameters, its own tokens and its noise, never of its neighbours. Rows
that need no filter pay for none, and nothing on the host loops over the vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from engine.api import TokenLogprobs
from engine.edits import edits
from engine.noise import uniforms
from engine.step import Row, Sample

GREEDY = 1e-5  # temperatures below it are 0: the most likely token
CHUNK = 256  # columns of the vocabulary that are summed at once
CANDIDATES = (256, 4096)  # how many of the best a filter looks at, before a row is sorted whole


def sample(
    logits: Tensor, rows: Sequence[Row], sampled_vocab: int, allowed: NDArray[np.uint8] | None = None
) -> list[Sample]:
    """One token for each row of `logits` [R, V]; ids from `sampled_vocab` on are never chosen.

    `allowed` are the masks of the rows' grammars, [R, bytes], bit i % 8 of byte i // 8 for id i. A row that has a NaN
    or infinite maximum gets no token, and disturbs no other row.
    """
    logits = logits[:, :sampled_vocab]
    edited = _edited(logits, rows)
    if allowed is not None:
        edited = _within(edited, logits, allowed)
    best = _argmax(edited)  # [R]
    is_number = edited.gather(-1, best[:, None]).isfinite().squeeze(-1)  # NaN is larger than any number  # [R]
    tokens = _choose(edited, best, rows)  # [R]
    logprobs = _logprobs(logits, tokens, rows)
    ids: list[int] = tokens.where(is_number, -1).tolist()
    return [Sample(None) if token < 0 else Sample(token, each) for token, each in zip(ids, logprobs, strict=True)]


def _edited(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logits [R, V] with the rows' penalties, biases and bans; the same tensor when there are none."""
    found = edits(rows, logits.shape[-1])
    if found is None:
        return logits
    places = torch.from_numpy(np.stack((found.rows, found.tokens))).to(logits.device).unbind()
    penalties, addends = torch.from_numpy(np.stack((found.penalties, found.addends))).to(logits.device).unbind()
    cells = logits[places].double()  # [E]
    cells = torch.where(cells > 0, cells / penalties, cells * penalties) + addends
    return logits.index_put(places, cells.to(logits.dtype))


def _within(edited: Tensor, logits: Tensor, allowed: NDArray[np.uint8]) -> Tensor:
    """The edited logits [R, V] without the tokens that the rows' grammars forbid.

    Where bans leave a grammar no token they give way: an output ends where its grammar does, min_tokens or not.
    """
    columns = np.unpackbits(allowed, axis=-1, count=logits.shape[-1], bitorder="little")  # [R, V], 0 beyond the masks
    forbidden = torch.from_numpy(columns == 0).to(logits.device)
    kept = edited.masked_fill(forbidden, -torch.inf)
    without = kept.amax(-1, keepdim=True).isneginf()  # [R, 1]
    return kept.where(~without, logits.masked_fill(forbidden, -torch.inf)) if without.any() else kept


def _argmax(logits: Tensor) -> Tensor:
    """The first of the largest logits [R, V], or of the NaN among them. [R]"""
    if logits.device.type == "cpu":  # torch takes twenty times as long as numpy
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _choose(logits: Tensor, best: Tensor, rows: Sequence[Row]) -> Tensor:
    """A token for each row of logits [R, V], whose likeliest are `best` [R]. [R]"""
    tokens, peaks = best.clone(), logits.gather(-1, best[:, None])  # [R], [R, 1]
    drawn = [index for index, row in enumerate(rows) if row.params.temperature >= GREEDY]
    plain = [index for index in drawn if not _is_filtered(rows[index])]
    filtered = [index for index in drawn if _is_filtered(rows[index])]
    for indices, draw in ((plain, _draw_plain), (filtered, _draw_filtered)):
        if indices:
            controls = _controls([rows[index] for index in indices]).to(logits.device)  # [r, 5]
            chosen = torch.tensor(indices, device=logits.device)
            # The maximum goes first: a small temperature then gives -inf, never inf - inf.
            scores = logits.index_select(0, chosen).sub_(peaks[chosen])  # [r, V], a copy
            scores.div_(controls[:, _TEMPERATURE, None].to(scores.dtype))
            tokens[chosen] = draw(scores, controls)
    return tokens


def _is_filtered(row: Row) -> bool:
    return row.params.top_k > 0 or row.params.top_p < 1 or row.params.min_p > 0


_NOISE, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = range(5)  # columns of the controls


def _controls(rows: Sequence[Row]) -> Tensor:
    """The numbers that a draw needs, in one tensor, so that one copy takes them to the device. [r, 5] float64"""
    params = [row.params for row in rows]
    noise = uniforms([p.seed for p in params], [p.choice for p in params], [row.output or 0 for row in rows])
    others = [(p.temperature, p.top_k, p.top_p, p.min_p) for p in params]
    return torch.from_numpy(np.column_stack((noise, np.array(others, np.float64))))


def _draw_plain(scores: Tensor, controls: Tensor) -> Tensor:
    """Inverse CDF in the order of the vocabulary. scores [r, V], at most 0 -> tokens [r]

    First the chunk, then the column in it: no running sum over the whole vocabulary is written out.
    """
    weights = scores.exp_()
    if missing := -weights.shape[-1] % CHUNK:
        weights = pad(weights, (0, missing))
    chunks = weights.view(len(weights), -1, CHUNK)  # [r, C, CHUNK]
    sums = chunks.sum(-1, dtype=torch.float64)  # [r, C]
    share = controls[:, _NOISE, None] * sums.sum(-1, keepdim=True)  # [r, 1]
    chunk = _invert(sums, share)  # [r, 1]
    before = (sums.cumsum(-1) - sums).gather(-1, chunk)
    column = _invert(chunks.take_along_dim(chunk[..., None], 1).squeeze(1), share - before)
    return (chunk * CHUNK + column).squeeze(-1)


def _invert(weights: Tensor, share: Tensor) -> Tensor:
    """The first column where the running sum of `weights` [r, C] passes `share` [r, 1]. [r, 1]

    Its weight is never 0, whatever was rounded on the way: the share is held inside of [0, total).
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    share = share.clamp(min=0).minimum(sums[:, -1:] * (1 - 2.0**-52))
    return torch.searchsorted(sums, share, right=True).clamp_(max=weights.shape[-1] - 1)  # NaN would be beyond


def _draw_filtered(scores: Tensor, controls: Tensor) -> Tensor:
    """Top-k, then top-p of what it left, then min-p; inverse CDF from the most likely down. [r, V] -> [r]"""
    total = torch.zeros(len(scores), 1, dtype=torch.float64, device=scores.device)
    if (controls[:, _TOP_K] <= 0).any():  # of the others, what top-k leaves is the whole
        total = scores.exp().sum(-1, keepdim=True, dtype=torch.float64)
    tokens = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    rows = torch.arange(len(scores), device=scores.device)  # those without a token yet
    vocab = scores.shape[-1]
    for count in (*CANDIDATES, vocab):
        if len(rows) and count <= vocab:
            tokens[rows], settled = _draw_among(count, scores, total, controls)
            rows = rows[~settled]
            scores, total, controls = scores[~settled], total[~settled], controls[~settled]
    return tokens


def _draw_among(count: int, scores: Tensor, total: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Draws among the `count` best of each row; also says which rows a larger count would not change. [r], [r]"""
    ranked, ids = _ranked(scores, count)  # [r, C]
    weights = ranked.double().exp()
    keep = _keep(weights, total, controls)  # [r, C], a prefix of each row
    kept = weights * keep
    column = _invert(kept, controls[:, _NOISE, None] * kept.sum(-1, keepdim=True))  # [r, 1]
    # Settled: the mass of the top k is known, and no score equal to the last kept one can be missing.
    last = ranked.gather(-1, keep.sum(-1, keepdim=True) - 1)
    settled = (controls[:, _TOP_K, None] <= count) & (last > ranked[:, -1:])
    return ids.gather(-1, column).squeeze(-1), settled.squeeze(-1)


def _ranked(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of scores that are at most 0, and their ids: best first, equal by id. [r, V] -> [r, C] twice"""
    return (_ranked_by_keys if scores.device.type == "cpu" else _ranked_by_torch)(scores, count)


def _ranked_by_torch(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if count == scores.shape[-1]:
        return torch.sort(scores, descending=True, stable=True)
    ids = scores.topk(count, sorted=False).indices.sort(-1).values
    ranked, order = torch.sort(scores.gather(-1, ids), descending=True, stable=True)
    return ranked, ids.gather(-1, order)


def _ranked_by_keys(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For a CPU, where torch's topk and sort are slow.

    A key is a score's bits before its id. Of two floats that are not positive the larger has the smaller bits, so
    keys in ascending order are scores in descending order. Only those are sorted that may be among the best:
    as large as the last of the `count` largest peaks, where a peak is the maximum of every P-th score.
    """
    keys = np.empty((len(scores), count), np.uint64)
    least = np.full(len(scores), -np.inf, np.float32)  # [r]
    places = max(1, 2 * count)
    if (folds := scores.shape[-1] // places) > 1:
        peaks = scores[:, : folds * places].view(-1, folds, places).amax(1).numpy()  # [r, P]
        least = np.partition(peaks, -count, -1)[:, -count]
    for best, row, bound in zip(keys, scores.numpy(), least, strict=True):
        ids = np.flatnonzero(~(row < bound))  # a NaN is among the best, wherever it is
        bits = (row[ids] + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
        best[:] = np.sort(bits << np.uint64(32) | ids.astype(np.uint64))[:count]
    ranked = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return torch.from_numpy(ranked), torch.from_numpy(keys.astype(np.uint32).astype(np.int64))


def _keep(weights: Tensor, total: Tensor, controls: Tensor) -> Tensor:
    """Which candidates, most likely first, the row's filters leave; at least the first. [r, C], [r, 1] -> [r, C]"""
    rank = torch.arange(weights.shape[-1], device=weights.device)
    top_k, top_p, min_p = (controls[:, column, None] for column in (_TOP_K, _TOP_P, _MIN_P))
    keep = (rank < top_k) | (top_k <= 0)
    kept = weights * keep
    mass = kept.sum(-1, keepdim=True).where(top_k > 0, total)  # without top-k: of the whole vocabulary
    before = kept.cumsum(-1) - kept  # of what is more likely
    keep &= (before < top_p * mass) | (top_p >= 1)
    keep &= weights >= min_p * weights[:, :1]
    return keep | (rank == 0)


def _logprobs(logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[TokenLogprobs | None]:
    """What the rows that ask for it are told of the model's own distribution: before edits, temperature and filters."""
    found: list[TokenLogprobs | None] = [None] * len(rows)
    counts = {index: row.params.logprobs for index, row in enumerate(rows) if row.params.logprobs is not None}
    if counts:
        chosen = torch.tensor(list(counts), device=logits.device)
        scores = logits[chosen].log_softmax(-1)  # [r, V]
        sampled = scores.gather(-1, tokens[chosen, None]).squeeze(-1).tolist()
        values, ids = (each.tolist() for each in _ranked(scores, min(max(counts.values()), scores.shape[-1])))
        for place, (index, count) in enumerate(counts.items()):
            top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
            found[index] = TokenLogprobs(sampled[place], top)
    return found


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
    values, top = (each.tolist() for each in _ranked(scores, min(count, vocab)))
    rows = zip(found.squeeze(-1).tolist(), top, values, ranks, strict=True)
    return [TokenLogprobs(logprob, tuple(zip(i, v, strict=True)), rank) for logprob, i, v, rank in rows]
