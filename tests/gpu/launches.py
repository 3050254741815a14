"""Calls every wrapper of a kernel at the shapes of Mixtral 8x7B, on tensors without data, so that all is compiled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.decoder import ForwardPass
from octavo.model.kernels.gpu import configs, experts
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, plan
from octavo.model.kernels.gpu.combine import combine
from octavo.model.kernels.gpu.configs import ANY
from octavo.model.kernels.gpu.decoder import GpuDecoder, GpuLayer
from octavo.model.kernels.gpu.norm import add_norm
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.kernels.gpu.rotary import rotate_and_store
from octavo.model.kernels.gpu.router import route
from octavo.model.kernels.gpu.sampling import draw
from octavo.model.kernels.gpu.sort import SortedPairs, sort_pairs
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Rotation
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor
from octavo.model.weights.stack import Stack

ARCHS = ("sm_80", "sm_86", "sm_90")  # All kernels are for these; sm_89 is sm_86 with fp8.
HIDDEN, INNER, EXPERTS, TOP_K = 4096, 14336, 8, 2
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MODEL = ModelConfig(32000, HIDDEN, INNER, 32, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, TOP_K)
PROCESSORS = 132
BLOCK_SIZE, NUM_BLOCKS = 16, 4096
EPS = 1e-5
GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # sequences
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROW_MAJOR = {"int8": Int8RowMajor, "int8 groups": Int8GroupedRowMajor, "int4": Int4RowMajor, "fp8": Fp8RowMajor}


@dataclass(frozen=True)
class Launch:
    """A Launch is one call of a wrapper, or of several that go together."""

    op: str  # module.function
    arch: str
    kind: str  # kind of the weights, or of the activations
    tokens: int
    shape: str = ANY  # matrix "out x in" of the table's lines, or any

    def __str__(self) -> str:
        return f"{self.op} {self.kind} {self.shape} T={self.tokens} {self.arch}"

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype of the activations."""
        return DTYPES.get(self.kind, torch.bfloat16)

    def matrix(self, other: tuple[int, int]) -> tuple[int, int]:
        """Returns the shape, or `other` if it is any."""
        if self.shape == ANY:
            return other
        out, inputs = map(int, self.shape.split("x"))
        return out, inputs

    def call(self) -> None:
        CALLS[self.op](self)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def pages(dtype: torch.dtype) -> LayerCache:
    slots = [meta(NUM_BLOCKS * BLOCK_SIZE + 1, KV_HEADS, HEAD_DIM, dtype=dtype) for _ in range(2)]
    blocks = [part[:-1].view(NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM) for part in slots]
    return LayerCache(*blocks, *slots)


def stack(kind: str, out: int, inputs: int) -> Stack:
    """Returns the weights of all experts, of a kind of DTYPES or ROW_MAJOR."""
    if kind in DTYPES:
        return Stack.of(meta(EXPERTS, out, inputs, dtype=DTYPES[kind]).unbind())
    return Stack.of(ROW_MAJOR[kind].stack(EXPERTS, (out, inputs), zeros_on(torch.device("meta"))))


def call_gate_up(launch: Launch) -> None:
    weights, config = line(launch, (2 * INNER, HIDDEN))
    x = meta(launch.tokens, weights.shape[1], dtype=launch.dtype)
    experts.gate_up(x, weights, pairs_of(launch, config.tokens), TOP_K, config)


def call_down(launch: Launch) -> None:
    weights, config = line(launch, (HIDDEN, INNER))
    inner = meta(launch.tokens * TOP_K, weights.shape[1], dtype=launch.dtype)
    experts.down(inner, weights, pairs_of(launch, config.tokens), config)


def line(launch: Launch, usual: tuple[int, int]) -> tuple[Stack, configs.Config]:
    """Returns weights of the shape that a line of the table is for, and the line."""
    weights = stack(launch.kind, *launch.matrix(usual))
    # No matrix is 0 x 0: the lines for any shape, even where the usual one has its own.
    return weights, configs.choose(launch.op, weights.kind, launch.matrix((0, 0)), launch.tokens, launch.arch)


def pairs_of(launch: Launch, tile: int) -> SortedPairs | torch.Tensor:
    """Returns sorted pairs, or unsorted ones if the tokens are few."""
    ids = meta(launch.tokens, TOP_K, dtype=torch.int32)
    return ids.view(-1) if launch.op.startswith("few.") else sort_pairs(ids, EXPERTS, tile)


def call_norm(launch: Launch) -> None:
    x, weight = meta(launch.tokens, HIDDEN, dtype=launch.dtype), meta(HIDDEN, dtype=launch.dtype)
    add_norm(x, x, weight, EPS)
    add_norm(x, None, weight, EPS)


def call_router(launch: Launch) -> None:
    x, weight = meta(launch.tokens, HIDDEN, dtype=launch.dtype), meta(HIDDEN, dtype=launch.dtype)
    route(x, x, weight, EPS, meta(EXPERTS, HIDDEN, dtype=launch.dtype), TOP_K)


def call_sort(launch: Launch) -> None:
    ids = meta(launch.tokens, TOP_K, dtype=torch.int32)
    for tile in 16, 128:
        sort_pairs(ids, EXPERTS, tile)


def call_rotary(launch: Launch) -> None:
    qkv = meta(launch.tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=launch.dtype)
    angles = meta(launch.tokens, 1, HEAD_DIM, dtype=torch.float32)
    slots = meta(launch.tokens, dtype=torch.int64)
    rotate_and_store(qkv, Rotation(angles, angles), slots, pages(launch.dtype), (HEADS, KV_HEADS))


def call_attention(launch: Launch) -> None:
    """Takes a token of each sequence; from 100 tokens on, two prompts and 24 decode rows, with long contexts."""
    counts, ends = (1,) * launch.tokens, (4000,) * launch.tokens
    if launch.tokens >= 100:
        prompt = (launch.tokens - 24) // 2
        counts, ends = (prompt, launch.tokens - 24 - prompt, *(1,) * 24), (prompt, 32000, 32000, *(100,) * 23)
    whole, long = (meta(launch.tokens, dtype=dtype) for dtype in (torch.int32, torch.int64))
    table = meta(len(counts), 2048, dtype=torch.int32)
    batch = ForwardBatch(long, long, long, whole, whole[: len(counts)], table, long, counts, ends)
    layer = pages(launch.dtype)
    tiles = AttentionTiles.of(MODEL, launch.dtype, launch.arch, PROCESSORS)
    q = meta(launch.tokens, HEADS, HEAD_DIM, dtype=launch.dtype)
    for window in None, 4096:
        attend(q, layer, plan(batch, KVCache((layer,), BLOCK_SIZE, NUM_BLOCKS), window, tiles))


def call_combine(launch: Launch) -> None:
    x, weight = meta(launch.tokens, HIDDEN, dtype=launch.dtype), meta(HIDDEN, dtype=launch.dtype)
    weights = meta(launch.tokens, TOP_K, dtype=torch.float32)
    for splits in 1, 2, 4:
        partials = meta(splits, launch.tokens * TOP_K, HIDDEN, dtype=torch.float32)
        combine(partials, weights, x, weight, EPS)
        combine(partials, weights, x, None, EPS)  # behind the last layer


def call_decoder(launch: Launch) -> None:
    """Runs two layers of a decoding pass, which a CUDA graph captures."""
    dtype, ids = launch.dtype, meta(launch.tokens, dtype=torch.int64)
    layer = GpuLayer(
        input_norm=meta(HIDDEN, dtype=dtype),
        qkv=meta((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, dtype=dtype),
        o=meta(HIDDEN, HEADS * HEAD_DIM, dtype=dtype),
        heads=(HEADS, KV_HEADS),
        window=None,
        post_norm=meta(HIDDEN, dtype=dtype),
        router=meta(EXPERTS, HIDDEN, dtype=dtype),
        top_k=TOP_K,
        gate_up=stack(launch.kind, 2 * INNER, HIDDEN),
        down=stack(launch.kind, HIDDEN, INNER),
    )
    table, lens = meta(launch.tokens, 512, dtype=torch.int32), meta(launch.tokens, dtype=torch.int32)
    ones = (1,) * launch.tokens
    batch = ForwardBatch(ids, ids, ids, meta(launch.tokens + 1, dtype=torch.int32), lens, table, ids, ones, ones)
    cache = KVCache((pages(dtype),) * 2, BLOCK_SIZE, NUM_BLOCKS)
    angles = meta(launch.tokens, 1, HEAD_DIM, dtype=torch.float32)
    ops = GpuOps(MODEL, PROCESSORS, launch.arch).ops()
    forward = ForwardPass(ops, {None: ops.plan_attention(batch, cache, None)}, Rotation(angles, angles))
    GpuDecoder((layer,) * 2, EPS, launch.arch)(meta(launch.tokens, HIDDEN, dtype=dtype), cache, forward)


def call_sampling(launch: Launch) -> None:
    """Samples all logits of this vocabulary, and some of a larger one, whose number no power of two divides."""
    controls = meta(launch.tokens, 5, dtype=torch.float64)
    for vocab, sampled in (32000, 32000), (151936, 151643):
        draw(meta(launch.tokens, vocab, dtype=torch.float32)[:, :sampled], controls)


@triton.jit
def _product(a, b, product, size: tl.constexpr):
    at = tl.arange(0, size)
    square = at[:, None] * size + at[None, :]
    tl.store(product + square, tl.dot(tl.load(a + square), tl.load(b + square)))


def call_spilling(launch: Launch) -> None:
    x = meta(32, 32, dtype=launch.dtype)
    _product[(1,)](x, x, meta(32, 32, dtype=torch.float32), size=32, num_warps=1, maxnreg=32)


def call_waiting(launch: Launch) -> None:
    assert meta(launch.tokens).sum().item() == 0


CALLS: dict[str, Callable[[Launch], None]] = {
    "experts.gate_up": call_gate_up,
    "experts.down": call_down,
    "few.gate_up": call_gate_up,
    "few.down": call_down,
    "norm.add_norm": call_norm,
    "router.route": call_router,
    "sort.sort_pairs": call_sort,
    "rotary.rotate_and_store": call_rotary,
    "combine.combine": call_combine,
    "attention.attend": call_attention,
    "sampling.draw": call_sampling,
    "decoder.decode": call_decoder,
}
# The tests must find fault with these.
FAULTY: dict[str, Callable[[Launch], None]] = {"spilling": call_spilling, "waiting": call_waiting}
CALLS |= FAULTY


def launches() -> Iterator[Launch]:
    """Yields at least one launch of every kernel, configuration, kind of weights and architecture."""
    for arch in ARCHS:
        for op in "norm.add_norm", "router.route", "rotary.rotate_and_store", "combine.combine":
            yield from (Launch(op, arch, "bf16", tokens) for tokens in (1, 24, 4095))
        yield from (Launch("sort.sort_pairs", arch, "", tokens) for tokens in (1, 24, 512, 4095))
        yield from (Launch("attention.attend", arch, "bf16", tokens) for tokens in (1, 24, 4095))
        yield Launch("attention.attend", arch, "fp32", 4095)
        yield from (Launch("sampling.draw", arch, "fp32", rows) for rows in (1, 24))
    yield from of_experts()
    for op in sorted(CALLS.keys() - FAULTY):
        yield Launch(op, "sm_90", "fp16", 24)
    for kind in "bf16", "int8", "int4", "fp8":
        yield from (Launch("decoder.decode", "sm_90", kind, size) for size in GRAPHS)
    yield from (Launch(op, "sm_90", "bf16", 24) for op in FAULTY)


def of_experts() -> Iterator[Launch]:
    """Yields a launch for every line of the table, and for kinds that share the lines of another kind."""
    for entry in sorted(configs.table()):
        if entry.op.startswith(("experts.", "few.")):
            launch = Launch(entry.op, entry.arch, entry.kind, entry.up_to, entry.shape)
            yield launch
            if entry.kind == "int8" and entry.up_to in (2, 8, 64):
                yield replace(launch, kind="int8 groups")
