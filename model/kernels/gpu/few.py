"""The experts of one or two tokens: every (token, choice) pair a tile of its own, with nothing to sort or to gather.

Up to two tokens choose four experts at most, and mostly different ones: a sort, whose single program is a chain of
dependent steps, would only bring two equal experts together, and those find each other in the L2 cache anyway, as
their programs run side by side. The matrix unit takes the one column as it takes eight: weights become 16-bit numbers
two at a time for it, where sums of elementwise products would need each in float32, and the tiles of weights come
through the same ring of asynchronous copies. What limits either way is how many bytes are under way.

Floor: the weights of the experts, see experts.py: for a token on an H100 117 us with 8 bits, 62 us with 4; 1.75 times
that for two. Down leaves its SMs no programs unless the inputs are split: 64 blocks of 64 rows for each pair.
"""

from torch import Tensor

from model.kernels.gpu import experts
from model.kernels.gpu.combine import combine
from model.kernels.gpu.configs import Config
from model.rows import Stack


def gate_up(normed: Tensor, ids: Tensor, gate_up: Stack, config: Config) -> Tensor:
    """silu(x w1) * (x w3): normed [T, H], ids [T, k] int32 -> inner [T * k, I]. Raises ValueError as in experts.py."""
    return experts.gate_up(normed, gate_up, ids.view(-1), ids.shape[1], config)


def down(inner: Tensor, ids: Tensor, weights: Tensor, down: Stack, x: Tensor, config: Config) -> Tensor:
    """x [T, H] + the sum over c of weights[t, c] * (inner[t * k + c] w2) -> [T, H]; two launches.

    inner [T * k, I], ids [T, k] int32, weights [T, k] float32. Raises ValueError as in experts.py.
    """
    partials = experts.down(inner, down, ids.view(-1), config)
    total, _ = combine(partials, weights, x, None, 0.0)
    return total
