"""Calls every wrapper of a kernel at the shapes of models, on tensors without data, so that all is compiled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.decoder import ForwardPass
from octavo.model.families import Swiglu
from octavo.model.kernels.gpu import configs, experts
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, plan
from octavo.model.kernels.gpu.combine import Biases, combine
from octavo.model.kernels.gpu.configs import ANY
from octavo.model.kernels.gpu.decoder import GpuDecoder, GpuLayer
from octavo.model.kernels.gpu.gather import gather
from octavo.model.kernels.gpu.linear import multiply
from octavo.model.kernels.gpu.norm import Delta, add_norm
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.kernels.gpu.rotary import Heads, rotate_and_store
from octavo.model.kernels.gpu.router import route
from octavo.model.kernels.gpu.sampling import draw
from octavo.model.kernels.gpu.sort import SortedPairs, sort_pairs
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Rotation
from octavo.model.moe import Router
from octavo.model.weights.kinds import Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.row_major_kinds import E2M1, RowMajorForm, row_major_form
from octavo.model.weights.stack import SILU, Stack
from tests.gpu.shapes import MIXTRAL, SHAPES, Shape

ARCHS = ("sm_80", "sm_86", "sm_90")  # All kernels are for these; sm_89 is sm_86 with fp8.
PROCESSORS = 132
BLOCK_SIZE, NUM_BLOCKS = 16, 4096
EPS = 1e-5
GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # sequences
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROW_MAJOR = {"int8": Int8RowMajor, "int8 groups": Int8GroupedRowMajor, "int4": Int4RowMajor, "fp8": Fp8RowMajor}
# What checkpoints have, and who has it at its size.
GPTQ, GPTQ_32, MXFP4, CHANNELS = "GPTQ", "GPTQ in groups of 32", "MXFP4", "8 bits a channel"
CHECKPOINTS = {
    GPTQ: (Kind(tuple(range(16)), 128, Scale.FLOAT16, Offset.ZERO), "Mixtral 8x22B"),
    GPTQ_32: (Kind(tuple(range(16)), 32, Scale.FLOAT16, Offset.ZERO), "Qwen3-30B-A3B"),
    MXFP4: (Kind(E2M1, 32, Scale.E8M0), "gpt-oss-20b"),
    CHANNELS: (Kind(None, 0, Scale.NONE), MIXTRAL),
}


@dataclass(frozen=True)
class Launch:
    """A Launch is one call of a wrapper, or of several that go together."""

    op: str  # module.function
    arch: str
    kind: str  # kind of the weights, or of the activations
    tokens: int
    shape: str = ANY  # matrix "out x in" of the table's lines, or any
    model: str = MIXTRAL  # one of SHAPES

    def __str__(self) -> str:
        return f"{self.op} {self.kind} {self.shape} T={self.tokens} {self.arch} {self.model}"

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.model]

    def rows(self) -> Tensor:
        """Returns rows of the hidden size."""
        return meta(self.tokens, self.sizes.hidden, dtype=self.dtype)

    def row(self) -> Tensor:
        """Returns one such row, of weights of a norm or of a bias."""
        return meta(self.sizes.hidden, dtype=self.dtype)

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


def config_of(sizes: Shape) -> ModelConfig:
    attention = sizes.heads, sizes.kv_heads, sizes.head_dim
    return ModelConfig(32000, sizes.hidden, sizes.inner, 32, *attention, sizes.experts, sizes.top_k)


def pages(launch: Launch) -> LayerCache:
    shape = launch.sizes.kv_heads, launch.sizes.head_dim
    slots = [meta(NUM_BLOCKS * BLOCK_SIZE + 1, *shape, dtype=launch.dtype) for _ in range(2)]
    blocks = [part[:-1].view(NUM_BLOCKS, BLOCK_SIZE, *shape) for part in slots]
    return LayerCache(*blocks, *slots)


def stack(launch: Launch, out: int, inputs: int) -> Stack:
    """Returns the weights of all experts, of a kind of DTYPES, ROW_MAJOR or CHECKPOINTS."""
    if launch.kind in DTYPES:
        return Stack.of(meta(launch.sizes.experts, out, inputs, dtype=launch.dtype).unbind())
    return Stack.of(form_of(launch).stack(launch.sizes.experts, (out, inputs), zeros_on(torch.device("meta"))))


def form_of(launch: Launch) -> type[RowMajorWeight] | RowMajorForm:
    """Returns how the launch's weights are held, if not as plain tensors."""
    if launch.kind in ROW_MAJOR:
        return ROW_MAJOR[launch.kind]
    form = row_major_form(CHECKPOINTS[launch.kind][0])
    assert form is not None
    return form


def call_gate_up(launch: Launch) -> None:
    weights, config = line(launch, (2 * launch.sizes.inner, launch.sizes.hidden))
    weights = biased(launch, weights, launch.sizes.activation)
    x = meta(launch.tokens, weights.shape[1], dtype=launch.dtype)
    experts.gate_up(x, weights, pairs_of(launch, config.tokens), launch.sizes.top_k, config)


def call_down(launch: Launch) -> None:
    weights, config = line(launch, (launch.sizes.hidden, launch.sizes.inner))
    inner = meta(launch.tokens * launch.sizes.top_k, weights.shape[1], dtype=launch.dtype)
    experts.down(inner, weights, pairs_of(launch, config.tokens), config)


def call_linear(launch: Launch) -> None:
    """Multiplies by a matrix that joins queries, keys and values."""
    out, inputs = launch.matrix((launch.sizes.qkv, launch.sizes.hidden))
    (weight,) = form_of(launch).stack(1, (out, inputs), zeros_on(torch.device("meta")))
    weights, x = Stack.of((weight,)), meta(launch.tokens, inputs, dtype=launch.dtype)
    multiply(x, weights, configs.choose(launch.op, weights.kind, (0, 0), launch.tokens, launch.arch))


def call_gather(launch: Launch) -> None:
    ids = meta(launch.tokens, launch.sizes.top_k, dtype=torch.int32)
    gather(launch.rows(), ids, meta(launch.sizes.experts, launch.sizes.hidden, dtype=torch.int32))


def line(launch: Launch, usual: tuple[int, int]) -> tuple[Stack, configs.Config]:
    """Returns weights of the shape that a line of the table is for, and the line."""
    weights = stack(launch, *launch.matrix(usual))
    # No matrix is 0 x 0: the lines for any shape, even where the usual one has its own.
    return weights, configs.choose(launch.op, weights.kind, launch.matrix((0, 0)), launch.tokens, launch.arch)


def pairs_of(launch: Launch, tile: int) -> SortedPairs | torch.Tensor:
    """Returns sorted pairs, or unsorted ones if the tokens are few."""
    ids = meta(launch.tokens, launch.sizes.top_k, dtype=torch.int32)
    return ids.view(-1) if launch.op.startswith("few.") else sort_pairs(ids, launch.sizes.experts, tile)


def delta_of(launch: Launch) -> Delta:
    return Delta(launch.rows(), launch.row() if launch.sizes.biases else None)


def router_of(launch: Launch) -> Router:
    """Returns the router, which normalises unless queries and keys are normed as a whole, as in OLMoE."""
    sizes = launch.sizes
    bias = meta(sizes.experts, dtype=torch.float32) if sizes.biases else None
    gate = meta(sizes.experts, sizes.hidden, dtype=launch.dtype)
    return Router(gate, sizes.top_k, bias, normalise=sizes.norm != "projection")


def heads_of(launch: Launch) -> Heads:
    sizes = launch.sizes
    each = {"none": None, "head": (1, 1), "projection": (sizes.heads, sizes.kv_heads)}[sizes.norm]
    norms = (None, None) if each is None else (meta(n * sizes.head_dim, dtype=launch.dtype) for n in each)
    bias = meta(sizes.qkv, dtype=launch.dtype) if sizes.biases else None
    return Heads(sizes.heads, sizes.kv_heads, bias, *norms, EPS, sizes.clip)


def rotation_of(launch: Launch) -> Rotation:
    angles = meta(launch.tokens, 1, launch.sizes.head_dim, dtype=torch.float32)
    return Rotation(angles, angles)


def call_norm(launch: Launch) -> None:
    add_norm(launch.rows(), delta_of(launch), launch.row(), EPS)
    add_norm(launch.rows(), None, launch.row(), EPS)


def call_router(launch: Launch) -> None:
    route(launch.rows(), delta_of(launch), launch.row(), EPS, router_of(launch))


def call_sort(launch: Launch) -> None:
    ids = meta(launch.tokens, launch.sizes.top_k, dtype=torch.int32)
    for tile in 16, 128:
        sort_pairs(ids, launch.sizes.experts, tile)


def call_rotary(launch: Launch) -> None:
    qkv, slots = meta(launch.tokens, launch.sizes.qkv, dtype=launch.dtype), meta(launch.tokens, dtype=torch.int64)
    rotate_and_store(qkv, rotation_of(launch), slots, pages(launch), heads_of(launch))


def call_attention(launch: Launch) -> None:
    """Takes a token of each sequence; from 100 tokens on, two prompts and 24 decode rows, with long contexts."""
    counts, ends = (1,) * launch.tokens, (4000,) * launch.tokens
    if launch.tokens >= 100:
        prompt = (launch.tokens - 24) // 2
        counts, ends = (prompt, launch.tokens - 24 - prompt, *(1,) * 24), (prompt, 32000, 32000, *(100,) * 23)
    whole, long = (meta(launch.tokens, dtype=dtype) for dtype in (torch.int32, torch.int64))
    table = meta(len(counts), 2048, dtype=torch.int32)
    batch = ForwardBatch(long, long, long, whole, whole[: len(counts)], table, long, counts, ends)
    layer, sizes = pages(launch), launch.sizes
    tiles = AttentionTiles.of(config_of(sizes), launch.dtype, launch.arch, PROCESSORS)
    q = meta(launch.tokens, sizes.heads, sizes.head_dim, dtype=launch.dtype)
    sinks = meta(sizes.heads, dtype=torch.float32) if sizes.sinks else None
    for window in None, sizes.window or 4096:
        attend(q, layer, plan(batch, KVCache((layer,), BLOCK_SIZE, NUM_BLOCKS), window, tiles), sinks)


def call_combine(launch: Launch) -> None:
    sizes = launch.sizes
    weights, ids = (meta(launch.tokens, sizes.top_k, dtype=dtype) for dtype in (torch.float32, torch.int32))
    biases = Biases(ids, meta(sizes.experts, sizes.hidden, dtype=launch.dtype)) if sizes.biases else None
    for splits in 1, 2, 4:
        partials = meta(splits, launch.tokens * sizes.top_k, sizes.hidden, dtype=torch.float32)
        combine(partials, weights, launch.rows(), launch.row(), EPS, biases)
        combine(partials, weights, launch.rows(), None, EPS, biases)  # behind the last layer


def biased(launch: Launch, weights: Stack, activation: Swiglu = SILU) -> Stack:
    """Returns the stack with a bias, if the model has any, and what follows its product."""
    bias = meta(launch.sizes.experts, weights.shape[0], dtype=launch.dtype) if launch.sizes.biases else None
    return replace(weights, bias=bias, activation=activation)


def layer_of(launch: Launch, window: int | None) -> GpuLayer:
    sizes, dtype = launch.sizes, launch.dtype
    return GpuLayer(
        input_norm=launch.row(),
        qkv=meta(sizes.qkv, sizes.hidden, dtype=dtype),
        o=meta(sizes.hidden, sizes.heads * sizes.head_dim, dtype=dtype),
        heads=heads_of(launch),
        post_norm=launch.row(),
        router=router_of(launch),
        gate_up=biased(launch, stack(launch, 2 * sizes.inner, sizes.hidden), sizes.activation),
        down=biased(launch, stack(launch, sizes.hidden, sizes.inner)),
        o_bias=launch.row() if sizes.biases else None,
        sinks=meta(sizes.heads, dtype=torch.float32) if sizes.sinks else None,
        window=window,
    )


def call_decoder(launch: Launch) -> None:
    """Runs two layers of a decoding pass, which a CUDA graph captures."""
    ids, windows = meta(launch.tokens, dtype=torch.int64), (None, launch.sizes.window)
    table, lens = meta(launch.tokens, 512, dtype=torch.int32), meta(launch.tokens, dtype=torch.int32)
    ones = (1,) * launch.tokens
    batch = ForwardBatch(ids, ids, ids, meta(launch.tokens + 1, dtype=torch.int32), lens, table, ids, ones, ones)
    cache = KVCache((pages(launch),) * 2, BLOCK_SIZE, NUM_BLOCKS)
    ops = GpuOps(config_of(launch.sizes), PROCESSORS, launch.arch).ops()
    plans = {window: ops.plan_attention(batch, cache, window) for window in windows}
    layers = tuple(layer_of(launch, window) for window in windows)
    GpuDecoder(layers, EPS, launch.arch)(launch.rows(), cache, ForwardPass(ops, plans, rotation_of(launch)))


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
    "linear.multiply": call_linear,
    "gather.gather": call_gather,
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
        for model in SHAPES:
            sizes = (1, 24, 4095) if model == MIXTRAL else (24,)
            for op in "norm.add_norm", "router.route", "rotary.rotate_and_store", "combine.combine", "attention.attend":
                yield from (Launch(op, arch, "bf16", tokens, model=model) for tokens in sizes)
            yield from (Launch("sort.sort_pairs", arch, "", tokens, model=model) for tokens in (24, 4095))
        yield Launch("attention.attend", arch, "fp32", 4095)
        yield from (Launch("sampling.draw", arch, "fp32", rows) for rows in (1, 24))
    yield from of_experts()
    yield from of_checkpoints()
    for op in sorted(CALLS.keys() - FAULTY - {"linear.multiply"}):  # cuBLAS multiplies by plain matrices
        yield Launch(op, "sm_90", "fp16", 24)
    for model in SHAPES:
        yield Launch("decoder.decode", "sm_90", "bf16", 64, model=model)
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


def of_checkpoints() -> Iterator[Launch]:
    """Yields products with what checkpoints have quantised: for a lone token, for a batch and for a prompt."""
    for arch in ARCHS:
        for kind, (_, model) in CHECKPOINTS.items():
            yield from (Launch(f"experts.{op}", arch, kind, 24, model=model) for op in ("gate_up", "down"))
        for kind in GPTQ, CHANNELS:
            yield Launch("linear.multiply", arch, kind, 24, model=CHECKPOINTS[kind][1])
    for kind, (_, model) in CHECKPOINTS.items():
        yield from (Launch(f"few.{op}", "sm_90", kind, 1, model=model) for op in ("gate_up", "down"))
        yield from (Launch(f"experts.{op}", "sm_90", kind, 4095, model=model) for op in ("gate_up", "down"))
    yield from (Launch("gather.gather", "sm_90", "bf16", tokens, model="Qwen3-30B-A3B") for tokens in (1, 24))
