"""Shares out the tokens of a step by need.

    each sequence that generates gets one token,
    the oldest prompt gets half of what is left, so it takes at most twice as long as if it were alone,
    the prompts with the least to compute get the other half, and what the oldest does not need.

So a short prompt passes long ones, and equal prompts end one after another instead of all at the end.
"""

from collections.abc import Iterable, Mapping

from octavo.engine.schedule.sequence import Sequence


def share_out(running: Iterable[Sequence], awaited: Mapping[Sequence, int], tokens: int) -> dict[Sequence, int]:
    """Returns how many of the step's tokens each running sequence computes; `running` is in order of arrival.

    A prompt in `awaited` has its turn as early as the shortest of the prompts that wait for it.
    """
    shares = {seq: 1 for seq in running if seq.remaining == 1}
    prompts = [seq for seq in running if seq.remaining > 1]
    left = tokens - len(shares)  # at least one for each of `prompts`
    if prompts:
        oldest = prompts[0]
        shares[oldest] = min(oldest.remaining, -(-left // 2))
        left -= shares[oldest]
    for seq in sorted(prompts, key=lambda seq: min(seq.remaining, awaited.get(seq, seq.remaining))):
        more = min(seq.remaining - shares.get(seq, 0), left)
        shares[seq] = shares.get(seq, 0) + more
        left -= more
    return shares
