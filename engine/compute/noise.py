"""Makes the random numbers of sampling, as a pure function of seed, choice and output position.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) is a counter-based
generator. It has no state to advance, so batching, preemption, recomputation and speculation cannot shift it. It runs
on the host, which knows position and seed before the step, so the numbers are the same for every device.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # each holds 32 bits, so that products fit

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)  # golden ratio, sqrt(3) - 1
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None, None]
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: Words, key: Words) -> Words:
    """Runs ten rounds over N counters [4, N] under their keys [2, N]; returns N x 4 random words [4, N]."""
    even, odd = counter[::2], counter[1::2]  # [2, N]
    for round_key in (key + _ROUNDS * _WEYL) & _LOW:
        products = even * _MULTIPLIERS
        even, odd = (products >> _32)[::-1] ^ odd ^ round_key, (products & _LOW)[::-1]
    return np.stack((even[0], odd[0], even[1], odd[1]))


def uniforms(seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """Returns a number in [0, 1) of 53 random bits for each triple. All three are taken modulo 2**64."""
    position, choice, seed = (
        np.array([value & 0xFFFF_FFFF_FFFF_FFFF for value in values], np.uint64)
        for values in (positions, choices, seeds)
    )
    counter = np.stack((position & _LOW, position >> _32, choice & _LOW, choice >> _32))
    words = philox(counter, np.stack((seed & _LOW, seed >> _32)))
    bits = ((words[0] << _32) | words[1]) >> np.uint64(11)
    drawn: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return drawn
