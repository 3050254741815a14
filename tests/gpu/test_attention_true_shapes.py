"""Tests paged attention at the shapes of Mixtral 8x7B: contexts of 32k, prompts, 64-bit addresses, CUDA graphs."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, GpuPlan, plan
from octavo.model.kernels.gpu.configs import arch_of
from octavo.model.kv_cache import KVCache
from tests.model.pages import flat_batch

pytestmark = pytest.mark.cuda

MIXTRAL = ModelConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=8,
    num_experts_per_tok=2,
)
BLOCK = 16
DTYPE = torch.bfloat16
HALF_PLACE = 2.0**-8  # bfloat16's; the keys' shares and the result have this dtype
LONG = 32768
BEYOND_32_BITS = 140_000  # blocks of 16 slots of 1024 elements: 2.29e9 elements

DECODING = [(length - 1, 1) for length in (LONG, 1, 63, 64, 65, 1000, 4097, 20000)]
MIXED = [(LONG - 1, 1), (0, 2048), (LONG - 300, 300), (500, 1), (4000, 5), (9, 4)]
each_batch = pytest.mark.parametrize("rows", [DECODING, MIXED, [(0, 4096)]], ids=["decode", "mixed", "prompt"])


class Layer:
    """Sequences of random keys and values, strewn over the last blocks of a cache on the device."""

    def __init__(self, rows: Sequence[tuple[int, int]], device: torch.device, num_blocks: int | None = None) -> None:
        torch.manual_seed(0)
        self.device = device
        width = max(-(-(before + new) // BLOCK) for before, new in rows)
        used = len(rows) * width
        self.cache = KVCache.allocate(MIXTRAL, num_blocks or used, BLOCK, DTYPE, device)
        self.pages = self.cache.layers[0]
        blocks = torch.randperm(used).int() + (self.cache.num_blocks - used)
        for slots in (self.pages.key_slots, self.pages.value_slots):
            slots[-used * BLOCK :].normal_()
        self.batch = self.batch_of(rows, blocks.view(len(rows), width))
        self.q = torch.randn(len(self.batch.tokens), 32, 128, device=device).to(DTYPE)

    def batch_of(self, rows: Sequence[tuple[int, int]], table: Tensor) -> ForwardBatch:
        batch = flat_batch([(n, before, [0] * new) for n, (before, new) in enumerate(rows)], table, BLOCK)
        tensors = {name: value for name in batch.__slots__ if isinstance(value := getattr(batch, name), Tensor)}
        return ForwardBatch(
            **{name: value.to(self.device) for name, value in tensors.items()},
            q_lens_host=batch.q_lens_host,
            kv_lens_host=batch.kv_lens_host,
        )

    def plan(self, window: int | None = None) -> GpuPlan:
        device = torch.cuda.get_device_properties(self.device)
        arch = arch_of((device.major, device.minor))
        return plan(
            self.batch, self.cache, window, AttentionTiles.of(MIXTRAL, DTYPE, arch, device.multi_processor_count)
        )

    def check(self, actual: Tensor, window: int | None = None) -> None:
        """Compares with float64; each result's own shares say how far it may be off.

        Every share is rounded by itself. Together they are off by half a place times the root of the sum of the squares
        of share * value. For up to 16 keys the error is at most four times that; for more, that is seven deviations.
        """
        exact, squares = self.exact(window)
        bound = HALF_PLACE * (exact.abs() + 4 * squares.sqrt()) + 1e-5
        worst = ((actual.double() - exact).abs() / bound).max().item()
        assert worst <= 1

    def exact(self, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Computes, in float64, the sums of share * value and of its square, [T, Hq * D] each, head by head."""
        out, squares = torch.empty(2, *self.q.shape, dtype=torch.float64, device=self.device)
        first = 0
        for line, new, end in zip(
            self.batch.block_table.long(), self.batch.q_lens_host, self.batch.kv_lens.tolist(), strict=True
        ):
            rows = slice(first, first + new)
            keys, values = (pages[line].flatten(0, 1)[:end] for pages in (self.pages.keys, self.pages.values))
            queries = torch.arange(end - new, end, device=self.device)[:, None]
            at = torch.arange(end, device=self.device)
            hidden = (at > queries) | (at <= queries - (window or end))
            for head in range(32):
                scores = self.q[rows, head].double() @ keys[:, head // 4].double().T / 128**0.5
                weights = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
                out[rows, head] = weights @ values[:, head // 4].double()
                squares[rows, head] = weights.square() @ values[:, head // 4].double().square()
            first += new
        return out.flatten(1), squares.flatten(1)


@each_batch
@pytest.mark.parametrize("window", [None, 4096])
def test_against_float64(rows: list[tuple[int, int]], window: int | None, device: torch.device) -> None:
    layer = Layer(rows, device)
    actual = attend(layer.q, layer.pages, layer.plan(window))
    layer.check(actual, window)


def test_slots_beyond_32_bits(device: torch.device) -> None:
    """Reads the last of 9.2 GB of pages."""
    layer = Layer(MIXED[2:], device, BEYOND_32_BITS)
    actual = attend(layer.q, layer.pages, layer.plan())
    layer.check(actual)


@each_batch
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # says torch, once
def test_nothing_waits_for_the_device_and_results_repeat(rows: list[tuple[int, int]], device: torch.device) -> None:
    layer = Layer(rows, device)
    first = attend(layer.q, layer.pages, layer.plan())  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = attend(layer.q, layer.pages, layer.plan())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert second.equal(first)


@pytest.mark.parametrize("sequences", [1, 8, 64])
def test_a_captured_step_is_replayed_on_other_lengths(sequences: int, device: torch.device) -> None:
    layer = Layer([(2000 + n, 1) for n in range(sequences)], device)
    made = layer.plan()
    attend(layer.q, layer.pages, made)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(layer.q, layer.pages, made)
    layer.batch.kv_lens.copy_(torch.arange(sequences) * 31 + 1)
    layer.batch.block_table.copy_(layer.batch.block_table.flip(0))
    layer.q.copy_(torch.randn_like(layer.q))
    graph.replay()
    layer.check(captured)
