"""Computes experts over (token, choice) pairs sorted by expert: gate_up with the activation, down with split K.

    order   pairs of expert 0  | expert 1        | ...       a program: one tile of pairs, all of one expert,
            tile 0 | tile 1    | tile 2 | tile 3 | ...                  times one block of that expert's rows

Programs run in bands of eight blocks of rows. Within a band the tiles follow each other, so tiles of the same expert
find its weights in the L2 cache, and neighbouring blocks find the tile's tokens there. A tile without work (-1) costs a
launch slot. Where the blocks alone would leave SMs idle, down cuts the inputs into config.splits ranges; each range has
partial sums of its own, which combine.py adds in a fixed order. There are no atomics, so a row's bits depend on that
row alone.

One or two tokens need no sort (few.* in the table of configurations): each of their two to four pairs is a tile of its
own. A sort, which is one program with a chain of dependent operations, would only bring equal experts together, and
those share weights through the L2 cache anyway. The matrix unit takes one column in the time of eight, and its weights
are unpacked two at a time, in 16 bits each; elementwise products would need each weight in float32.

The floor is to read the weights of the chosen experts once. A layer of Mixtral 8x7B has 3 * 4096 * 14336 * e weights
for e experts. This takes, in microseconds at the 3.0 TB/s of an H100 (0.70 of it on an H200), two thirds of it in
gate_up:

    tokens           1     2     4     8    16   32-128
    experts          2   3.5  5.47   7.2  7.92        8
    bf16           235   411   642   845   930      940
    int8, fp8      117   205   321   423   465      470
    int4            62   109   171   225   247      250    with a scale and a min, 4 bytes, per 128 weights

Beyond some hundred tokens the matrix unit sets the floor: 352 MFLOP a token, 0.5 us at 700 TFLOP/s.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.arguments import weight_arguments, weight_constants
from octavo.model.kernels.gpu.configs import Config
from octavo.model.kernels.gpu.numbers import moved
from octavo.model.kernels.gpu.product import product, tiles_of
from octavo.model.kernels.gpu.sort import SortedPairs, max_tiles
from octavo.model.weights.stack import Stack

_BAND = tl.constexpr(8)  # blocks of rows
# These are rows of one table, so the alignment of their pointers changes with its width.
_OF_TILES = ["tile_expert_ptr", "tile_start_ptr", "tile_end_ptr"]


def gate_up(normed: Tensor, gate_up: Stack, pairs: SortedPairs | Tensor, top_k: int, config: Config) -> Tensor:
    """Computes activation(x w1, x w3) for every pair: normed [T, H] -> inner [P, I]; row p is for pair order[p].

    The activation is the stack's, and so is the bias, if it has one, which is added to both products. Weights whose
    inputs have an order of their own take rows that gather.py has made, one for each pair; then top_k is 1.

    `pairs` are sorted, or they are the experts of unsorted pairs, [P] int32, each a tile of its own. Of a tile's
    config.rows, half are gate and half are up. config.inputs are at most one group where groups have scales of their
    own, and for int4 exactly one. Raises ValueError if the inputs do not match the weights, or if the pairs were sorted
    into tiles of another size.
    """
    hidden = gate_up.shape[0] // 2
    count, tiles = _counts(pairs)
    _check(normed, gate_up, pairs, config)
    inner = normed.new_empty(count, hidden)
    blocks = triton.cdiv(hidden, config.rows // 2)
    _gate_up[(tiles * blocks,)](
        normed,
        *weight_arguments(gate_up),
        *_tile_arguments(pairs),
        gate_up.bias,
        inner,
        blocks,
        hidden,
        top_k,
        ACTIVATION=gate_up.activation,
        **weight_constants(gate_up, config, hidden % (config.rows // 2) == 0),
    )
    return inner


def down(inner: Tensor, down: Stack, pairs: SortedPairs | Tensor, config: Config) -> Tensor:
    """Computes inner [P, I] -> partials [S, P, H] float32; row t * k + c is for token t's choice c.

    The sum over S is inner times w2. It takes the pairs that gate_up takes, and raises the same errors.
    """
    outputs = down.shape[0]
    _, tiles = _counts(pairs)
    _check(inner, down, pairs, config)
    partials = inner.new_empty(config.splits, inner.shape[0], outputs, dtype=torch.float32)
    blocks = triton.cdiv(outputs, config.rows)
    _down[(tiles * blocks, config.splits)](
        inner,
        *weight_arguments(down),
        *_tile_arguments(pairs),
        partials,
        blocks,
        outputs,
        inner.shape[0],
        **weight_constants(down, config, outputs % config.rows == 0),
    )
    return partials


def _counts(pairs: SortedPairs | Tensor) -> tuple[int, int]:
    """Returns the number of pairs and the number of tiles."""
    if isinstance(pairs, Tensor):
        return pairs.shape[0], pairs.shape[0]
    return pairs.order.shape[0], pairs.tile_expert.shape[0]


def _check(x: Tensor, stack: Stack, pairs: SortedPairs | Tensor, config: Config) -> None:
    """Raises ValueError if the pairs or the rows do not fit."""
    count, tiles = _counts(pairs)
    if isinstance(pairs, SortedPairs) and tiles != max_tiles(count, stack.quants.shape[0], config.tokens):
        raise ValueError(f"The pairs were not sorted into tiles of {config.tokens}.")
    if x.shape[1] != stack.shape[1] or not x.is_contiguous():
        raise ValueError(f"The rows are not contiguous with the {stack.shape[1]} inputs of the weights.")


def _tile_arguments(pairs: SortedPairs | Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, int]:
    """Returns the order, each tile's expert, start and end, and the number of tiles."""
    if isinstance(pairs, Tensor):
        return None, pairs, None, None, pairs.shape[0]
    return pairs.order, pairs.tile_expert, pairs.tile_start, pairs.tile_end, pairs.tile_expert.shape[0]


# Triton must not specialise on what depends on the number of tokens: one kernel serves all that share a configuration.
@triton.jit(do_not_specialize=["tiles"], do_not_specialize_on_alignment=_OF_TILES)
def _gate_up(
    x_ptr,
    quants_ptr,
    scales_ptr,
    offsets_ptr,
    factors_ptr,
    inputs,
    width,
    groups,
    order_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_end_ptr,
    tiles,
    bias_ptr,
    inner_ptr,
    blocks,
    hidden,
    top_k,
    TILES: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    tile, block = tile_and_block(tiles, blocks)
    expert = tl.load(tile_expert_ptr + tile)
    if expert < 0:
        return
    half: tl.constexpr = TILES.rows // 2
    at = block * half + tl.arange(0, TILES.rows) % half
    row = (at if TILES.even_rows else tl.minimum(at, hidden - 1)) + tl.arange(0, TILES.rows) // half * hidden
    before = expert.to(tl.int64) * (2 * hidden)  # The offsets of all experts together need more than 32 bits.
    quants = quants_ptr + (before * width + row * width)[:, None]
    of_groups = before * groups + row
    scales, offsets, factors = (
        moved(scales_ptr, of_groups),
        moved(offsets_ptr, of_groups),
        moved(factors_ptr, before + row),
    )
    place, there = _tile_places(tile_start_ptr, tile_end_ptr, tile, TILES.tokens)
    token = _load_pairs(order_ptr, place, there) // top_k
    x = x_ptr + token.to(tl.int64)[None, :] * inputs
    tiles_in_k = tiles_of(inputs, TILES)
    acc = product(x, there, quants, scales, offsets, factors, 2 * hidden, inputs, 0, tiles_in_k, TILES)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + before + row).to(tl.float32)[:, None]
    gate, up = tl.split(tl.permute(tl.reshape(acc, (2, half, TILES.tokens)), (1, 2, 0)))
    activated = _activated(gate, up, ACTIVATION)  # [half, TOKENS]
    at = block * half + tl.arange(0, half)
    inner = inner_ptr + place.to(tl.int64)[None, :] * hidden + at[:, None]
    tl.store(inner, activated.to(inner_ptr.dtype.element_ty), mask=there[None, :] & (at < hidden)[:, None])


@triton.jit(do_not_specialize=["tiles", "num_pairs"], do_not_specialize_on_alignment=_OF_TILES)
def _down(
    inner_ptr,
    quants_ptr,
    scales_ptr,
    offsets_ptr,
    factors_ptr,
    inputs,
    width,
    groups,
    order_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_end_ptr,
    tiles,
    partials_ptr,
    blocks,
    outputs,
    num_pairs,
    TILES: tl.constexpr,
):
    tile, block = tile_and_block(tiles, blocks)
    expert = tl.load(tile_expert_ptr + tile)
    if expert < 0:
        return
    at = block * TILES.rows + tl.arange(0, TILES.rows)
    row = at if TILES.even_rows else tl.minimum(at, outputs - 1)
    before = expert.to(tl.int64) * outputs
    quants = quants_ptr + (before * width + row * width)[:, None]
    of_groups = before * groups + row
    scales, offsets, factors = (
        moved(scales_ptr, of_groups),
        moved(offsets_ptr, of_groups),
        moved(factors_ptr, before + row),
    )
    place, there = _tile_places(tile_start_ptr, tile_end_ptr, tile, TILES.tokens)
    x = inner_ptr + place.to(tl.int64)[None, :] * inputs
    tiles_in_k = tiles_of(inputs, TILES)
    share = tl.cdiv(tiles_in_k, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tiles_in_k)
    acc = product(x, there, quants, scales, offsets, factors, outputs, inputs, first, last, TILES)
    target = (tl.program_id(1) * num_pairs + _load_pairs(order_ptr, place, there)).to(tl.int64)
    tl.store(partials_ptr + target[None, :] * outputs + at[:, None], acc, mask=there[None, :] & (at < outputs)[:, None])


@triton.jit
def _activated(gate, up, ACTIVATION: tl.constexpr):
    """Computes what a Swiglu says (model/families.py), elementwise."""
    if ACTIVATION.limit is not None:
        gate = tl.minimum(gate, ACTIVATION.limit)
        up = tl.minimum(tl.maximum(up, -ACTIVATION.limit), ACTIVATION.limit)
    if ACTIVATION.shift != 0:
        up += ACTIVATION.shift
    scaled = gate if ACTIVATION.alpha == 1 else gate * ACTIVATION.alpha
    return gate * tl.sigmoid(scaled) * up


@triton.jit
def tile_and_block(tiles, blocks):
    """Returns this program's tile and block; programs go by bands of blocks, in a band by tiles, in those by blocks."""
    program = tl.program_id(0)
    band = program // (_BAND * tiles)
    within = program % (_BAND * tiles)
    width = tl.minimum(blocks - band * _BAND, _BAND)
    return within // width, band * _BAND + within % width


@triton.jit
def _tile_places(tile_start_ptr, tile_end_ptr, tile, TOKENS: tl.constexpr):
    """Returns the places in `order` of a tile's pairs, and whether there is a pair at each; both are [TOKENS]."""
    columns = tl.arange(0, TOKENS)
    if tile_start_ptr is None:  # unsorted
        place = tile + columns
        there = columns == 0
    else:
        place = tl.load(tile_start_ptr + tile) + columns
        there = place < tl.load(tile_end_ptr + tile)
    return place, there


@triton.jit
def _load_pairs(order_ptr, place, there):
    """Returns the numbers of the pairs, [TOKENS]."""
    return place if order_ptr is None else tl.load(order_ptr + place, mask=there, other=0)


def gate_up_reference(normed: Tensor, gate_up: Stack, dense: Tensor, ids: Tensor, order: Tensor) -> Tensor:
    """Does what gate_up does, pair by pair in float64: dense are the weights [E, 2I, H], order [P] -> [P, I]."""
    rows, activation = [], gate_up.activation
    for pair in order.tolist():
        expert, x = ids.flatten()[pair], normed[pair // ids.shape[1]].double()
        product = dense[expert].double() @ x
        gate, up = (product if gate_up.bias is None else product + gate_up.bias[expert]).chunk(2)
        if activation.limit is not None:
            gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        rows.append(gate * torch.sigmoid(activation.alpha * gate) * (up + activation.shift))
    return torch.stack(rows)


def down_reference(inner: Tensor, down: Tensor, ids: Tensor, order: Tensor) -> Tensor:
    """Computes the sum of down's partials in float64: inner [P, I], down [E, H, I] dense -> [P, H]."""
    out = inner.new_empty(len(order), down.shape[1], dtype=torch.float64)
    for row, pair in enumerate(order.tolist()):
        out[pair] = down[ids.flatten()[pair]].double() @ inner[row].double()
    return out
