"""The randomness of sampling: a pure function of seed, choice and output position.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) is a counter-based
generator: it has no state to advance, so batching, preemption, recomputation and speculation cannot shift it. It runs
on the host, where position and seed are always known before the step, and so it is the same for every device.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # of 32 bits each: the products of a round then need no care

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # golden ratio, sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: Words, key: Words) -> Words:
    """Ten rounds over N counters [4, N] under their keys [2, N]; returns N x 4 random words [4, N]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3))


def uniforms(seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) of 53 random bits for each triple; all three are taken modulo 2**64."""
    position, choice, seed = (
        np.array([value & 0xFFFF_FFFF_FFFF_FFFF for value in values], np.uint64)
        for values in (positions, choices, seeds)
    )
    counter = np.stack((position & _LOW, position >> _32, choice & _LOW, choice >> _32))
    words = philox(counter, np.stack((seed & _LOW, seed >> _32)))
    bits = ((words[0] << _32) | words[1]) >> np.uint64(11)
    drawn: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return drawn
