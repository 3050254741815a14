"""What a GPU does, on a CPU: operations that read lengths where the device has them, and a capture that runs again."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from octavo.engine.compute.graphs import Replay
from octavo.model.batch import ForwardBatch
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.ops.seams import TORCH, Ops, Plan


def reading_the_device() -> Ops:
    """torch's operations, which loop over counts of the host, given those that are in the batch's tensors by now."""

    def plan_attention(batch: ForwardBatch, cache: KVCache, window: int | None) -> Plan:
        q_lens, kv_lens = batch.q_starts.diff().tolist(), batch.kv_lens.tolist()
        now = replace(batch, q_lens_host=tuple(q_lens), kv_lens_host=tuple(kv_lens))
        return TORCH.plan_attention(now, cache, window)

    return replace(TORCH, plan_attention=plan_attention, capturable=True)


def capturable(model: Decoder) -> Decoder:
    """The model with such operations, layer by layer."""
    layers = tuple(replace(layer, fused=None) for layer in model.layers)
    return replace(model, ops=reading_the_device(), layers=layers, fused=None)


@dataclass
class FakeCapture:
    """Runs a function again where a graph would be replayed, and puts the result where the first one is."""

    fails_at: int | None = None  # which capture, counted from 0
    replays: list[int] = field(default_factory=list)  # rows of each
    captured: list[int] = field(default_factory=list)  # rows of each

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        if len(self.captured) == self.fails_at:
            raise RuntimeError("CUDA error: out of luck\nand many further lines")
        out = run()
        where, shape = out.data_ptr(), out.shape
        self.captured.append(len(out))

        def replay() -> Tensor:
            out.fill_(torch.nan)
            out.copy_(run())
            assert (out.data_ptr(), out.shape) == (where, shape)
            self.replays.append(len(out))
            return out

        return replay
