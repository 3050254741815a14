"""Holds ForwardBatch, the flat batch of a forward pass: the tokens of many sequences, concatenated without padding."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Sequence n owns the tokens q_starts[n] : q_starts[n+1]; they are the last ones of its kv_lens[n] positions.

        tokens      a0 a1 a2 | b7 | c4 c5        three sequences: a prefill, a decode, a prefill chunk
        positions    0  1  2 |  7 |  4  5
        q_starts     0         3    4      6
        kv_lens      3         8    6            positions readable after this pass has written

    Position p of sequence n lives in slot block_table[n, p // block_size] * block_size + p % block_size.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64, where each token's key and value are written; -1 writes nothing
    q_starts: Tensor  # [N+1] int32
    kv_lens: Tensor  # [N] int32, 0 for a padding row
    block_table: Tensor  # [N, B] int32, unused entries are 0
    logit_rows: Tensor  # [R] int64, the tokens whose logits are wanted
    q_lens_host: tuple[int, ...]  # the same counts as plain ints, for code that loops on the host
    kv_lens_host: tuple[int, ...]
    addends: Tensor | None = None  # [L, T, E] float32, for the logits of the L routers; None: they choose freely
