"""Draws one token for each row of logits, by temperature, top-k, top-p and min-p, with given noise.

    logits [R, V]  ->  how likely  ->  kept: a prefix of the most likely  ->  inverse CDF in the order of the vocabulary

A row's token is a function of its logits and its controls, never of its neighbours. Equal logits rank by id. Rows that
need no filter pay for none, and nothing on the host loops over the vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

NOISE, TEMPERATURE, TOP_K, TOP_P, MIN_P = range(5)  # columns of the controls
GREEDY = 1e-5  # temperatures below it are 0: the most likely token
CHUNK = 256  # columns of the vocabulary that are summed at once
FEW = 16  # fewer tokens than 1 / FEW of the vocabulary are sorted; for more, the whole vocabulary is laid out
CANDIDATES = (256, 4096)  # A filter looks at that many of the best tokens before a row is sorted whole.


def draw(logits: Tensor, controls: Tensor) -> Tensor:
    """Draws a token for each row of logits [R, V], or -1 if its largest logit is NaN or infinite; returns [R] int64.

    controls [R, 5] float64, on the device of the logits, are noise in [0, 1), temperature, and the filters top_k (0:
    none), top_p (1: none) and min_p (0: none). Nothing waits for a device; on any but a CPU the reference runs.
    """
    if logits.device.type != "cpu":
        return draw_reference(logits, controls)
    best = torch.from_numpy(logits.numpy().argmax(-1))  # torch takes twenty times as long as numpy  # [R]
    peaks = logits.gather(-1, best[:, None])  # NaN is larger than any number  # [R, 1]
    is_number = np.isfinite(peaks.numpy()[:, 0])
    tokens = torch.from_numpy(np.where(is_number, best, -1))
    wanted = controls.numpy()
    drawn = is_number & (wanted[:, TEMPERATURE] >= GREEDY)
    if not drawn.any():
        return tokens
    filtered = (wanted[:, TOP_K] > 0) | (wanted[:, TOP_P] < 1) | (wanted[:, MIN_P] > 0)
    for rows, choose in ((drawn & ~filtered, _draw_plain), (drawn & filtered, _draw_filtered)):
        if rows.any():
            chosen = torch.from_numpy(rows.nonzero()[0])  # [r]
            # The maximum goes first: a small temperature then gives -inf, never inf - inf.
            scores = logits.index_select(0, chosen).sub_(peaks[chosen])  # [r, V], a copy
            tokens[chosen] = choose(scores, controls[chosen])
    return tokens


def draw_reference(logits: Tensor, controls: Tensor) -> Tensor:
    """Draws the same tokens: sorts everything, and sums everything in float64."""
    peaks = logits.amax(-1, keepdim=True)  # NaN is larger than any number  # [R, 1]
    ranked, ids = torch.sort(logits - peaks, descending=True, stable=True)  # [R, V]
    scores = ranked.double()
    weights = _weights(scores, controls)
    keep = _keep(scores, weights, weights.sum(-1, keepdim=True), controls)
    kept = torch.zeros_like(weights).scatter_(-1, ids, weights * keep)  # in the order of the vocabulary
    drawn = _invert(kept, controls[:, NOISE, None] * kept.sum(-1, keepdim=True))
    tokens = ids[:, :1].where(controls[:, TEMPERATURE, None] < GREEDY, drawn)
    return tokens.where(peaks.isfinite(), -1).squeeze(-1)


def _weights(scores: Tensor, controls: Tensor) -> Tensor:
    """Maps scores [r, C], which are at most 0, to numbers [r, C] in proportion to their probabilities."""
    return (scores / controls[:, TEMPERATURE, None].to(scores.dtype)).exp_()


def _draw_plain(scores: Tensor, controls: Tensor) -> Tensor:
    """Draws among all tokens by scores [r, V], which are at most 0 and are overwritten; returns tokens [r].

    It finds the chunk first, then the column in it: no running sum over the whole vocabulary is written out.
    """
    weights = scores.div_(controls[:, TEMPERATURE, None].to(scores.dtype)).exp_()
    if missing := -weights.shape[-1] % CHUNK:
        weights = pad(weights, (0, missing))
    chunks = weights.view(len(weights), -1, CHUNK)  # [r, C, CHUNK]
    sums = chunks.sum(-1, dtype=torch.float64)  # [r, C]
    share = controls[:, NOISE, None] * sums.sum(-1, keepdim=True)  # [r, 1]
    chunk = _invert(sums, share)  # [r, 1]
    before = (sums.cumsum(-1) - sums).gather(-1, chunk)
    column = _invert(chunks.take_along_dim(chunk[..., None], 1).squeeze(1), share - before)
    return (chunk * CHUNK + column).squeeze(-1)


def _invert(weights: Tensor, share: Tensor) -> Tensor:
    """Returns the first column [r, 1] in which the running sum of `weights` [r, C] passes `share` [r, 1].

    Its weight is never 0, however sums were rounded, since the share is held inside of [0, total).
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    share = share.clamp(min=0).minimum(sums[:, -1:] * (1 - 2.0**-52))
    return torch.searchsorted(sums, share, right=True).clamp_(
        max=weights.shape[-1] - 1
    )  # A NaN would be beyond the last column.


def _draw_filtered(scores: Tensor, controls: Tensor) -> Tensor:
    """Draws among the tokens that top-k leaves, then top-p, then min-p, by scores [r, V] of at most 0; returns [r]."""
    total = torch.zeros(len(scores), 1, dtype=torch.float64)
    whole = (controls[:, TOP_K] <= 0) & (controls[:, TOP_P] < 1)  # top-k leaves all tokens
    for row in whole.nonzero().flatten().tolist():  # a row at a time stays in the cache
        total[row] = scores[row].div(controls[row, TEMPERATURE].item()).exp_().sum(dtype=torch.float64)
    tokens = torch.zeros(len(scores), dtype=torch.int64)
    rows = torch.arange(len(scores))  # rows without a token yet
    vocab = scores.shape[-1]
    for count in (*CANDIDATES, vocab):
        if len(rows) and count <= vocab:
            tokens[rows], settled = _draw_among(count, scores, total, controls)
            rows = rows[~settled]
            scores, total, controls = scores[~settled], total[~settled], controls[~settled]
    return tokens


def _draw_among(count: int, scores: Tensor, total: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Draws among the `count` best of each row; returns tokens [r], and whether a larger count changes nothing [r]."""
    ranked, ids = rank(scores, count)  # [r, C]
    exact = ranked.double()
    weights = _weights(exact, controls)
    keep = _keep(exact, weights, total, controls)  # [r, C], a prefix of each row
    counts = keep.sum(-1, keepdim=True)  # [r, 1]
    kept = (weights * keep)[:, : int(counts.max())]
    tokens = _draw_kept(kept, ids[:, : kept.shape[-1]], controls[:, NOISE, None], scores.shape[-1])
    # A row is settled if the mass of its top k is known and no score equal to the last kept one can be missing.
    settled = (controls[:, TOP_K, None] <= count) & (ranked.gather(-1, counts - 1) > ranked[:, -1:])
    return tokens, settled.squeeze(-1)


def _draw_kept(kept: Tensor, ids: Tensor, noise: Tensor, vocab: int) -> Tensor:
    """Inverts the CDF of kept [r, K] in the order of ids [r, K], which are sorted, or laid out if many; returns [r]."""
    share = noise * kept.sum(-1, keepdim=True)  # [r, 1]
    if kept.shape[-1] > vocab // FEW:
        return _invert(kept.new_zeros(len(kept), vocab).scatter_(-1, ids, kept), share).squeeze(-1)
    order = torch.from_numpy(ids.numpy().argsort(-1))
    column = _invert(kept.gather(-1, order), share)
    return ids.gather(-1, order.gather(-1, column)).squeeze(-1)


def _keep(scores: Tensor, weights: Tensor, total: Tensor, controls: Tensor) -> Tensor:
    """Returns which candidates [r, C], most likely first, the row's filters leave; the first one always stays.

    `total` [r, 1] is the mass of the whole vocabulary. min_p compares logarithms of weights, which are not rounded.
    """
    position = torch.arange(scores.shape[-1], device=scores.device)
    temperature, top_k, top_p, min_p = controls[:, TEMPERATURE:, None].unbind(1)  # [r, 1] each
    keep = (position < top_k) | (top_k <= 0)
    kept = weights * keep
    mass = kept.sum(-1, keepdim=True).where(top_k > 0, total)  # without top-k, the mass of the whole vocabulary
    before = kept.cumsum(-1) - kept  # the mass of all more likely candidates
    keep &= (before < top_p * mass) | (top_p >= 1)
    keep &= scores >= temperature * min_p.log()
    return keep | (position == 0)


def rank(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` best of scores [r, V] of at most 0, and their ids: best first, equal by id; both [r, C]."""
    return (_ranked_by_keys if scores.device.type == "cpu" else _ranked_by_torch)(scores, count)


def _ranked_by_torch(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if count == scores.shape[-1]:
        return torch.sort(scores, descending=True, stable=True)
    ids = scores.topk(count, sorted=False).indices.sort(-1).values
    ranked, order = torch.sort(scores.gather(-1, ids), descending=True, stable=True)
    return ranked, ids.gather(-1, order)


def _ranked_by_keys(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ranks on a CPU, where torch's topk and sort are slow.

    A key is a score's bits before its id. Of two floats that are not positive, the larger has the smaller bits. So keys
    in ascending order are scores in descending order. A score is sorted only if it may be among the best: if it is as
    large as the last of the `count` largest peaks, where a peak is the maximum of every P-th score.
    """
    keys = np.empty((len(scores), count), np.uint64)
    least = np.full(len(scores), -np.inf, np.float32)  # [r]
    places = max(1, 2 * count)
    if (folds := scores.shape[-1] // places) > 1:
        peaks = scores[:, : folds * places].view(-1, folds, places).amax(1).numpy()  # [r, P]
        least = np.partition(peaks, -count, -1)[:, -count]
    for best, row, bound in zip(keys, scores.numpy(), least, strict=True):
        ids = np.flatnonzero(~(row < bound))  # NaNs are among the best, too
        bits: NDArray[np.uint64] = (row[ids] + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
        best[:] = np.sort(bits << np.uint64(32) | ids.astype(np.uint64))[:count]
    ranked = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return torch.from_numpy(ranked), torch.from_numpy(keys.astype(np.uint32).astype(np.int64))
