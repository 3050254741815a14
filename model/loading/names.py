"""Lists where the weights of a decoder lie in its checkpoint: tables of tensor names and shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from octavo.model.config import ModelConfig

HEAD_MODULE = "lm_head"
HEAD = f"{HEAD_MODULE}.weight"
HEAD_BIAS = "lm_head.bias"
DERIVED = ".rotary_emb.inv_freq"  # Older Llama checkpoints have this table; nobody reads it, config.json implies it.


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A TensorSlice is rows of a matrix: a tensor of the checkpoint, or one expert's share of it."""

    name: str
    shape: tuple[int, ...]  # the whole tensor's
    expert: int | None = None  # the index along the first axis
    transposed: bool = False  # The expert's share has inputs by outputs.
    every: tuple[int, int] | None = None  # (first, step) of the rows; in a tensor without an expert, of the last axis

    @property
    def rows(self) -> int:
        """Returns how many rows of the matrix these are."""
        inputs_first = self.transposed
        whole = self.shape[-1] if inputs_first else self.shape[-2]
        return whole if self.every is None else len(range(self.every[0], whole, self.every[1]))

    @property
    def inputs(self) -> int:
        return self.shape[-2] if self.transposed else self.shape[-1]


Matrix = tuple[TensorSlice, ...]  # the slices of one matrix, from its first row to its last


@dataclass(frozen=True, slots=True)
class LayerNames:
    """LayerNames are the slices of one decoder layer."""

    index: int
    # What is not multiplied in a seam, and routers and gates, under the names of _shapes; the slices of each are
    # joined along the last axis.
    vectors: Mapping[str, Matrix]
    qkv: Matrix
    o: Matrix
    gate_up: tuple[Matrix, ...]  # one for each expert
    down: tuple[Matrix, ...]
    shared: tuple[Matrix, Matrix] | None = None  # gate_up and down of the shared expert

    def matrices(self) -> tuple[Matrix, ...]:
        """Returns the slices of all matrices."""
        return (self.qkv, self.o, *self.gate_up, *self.down, *(self.shared or ()))

    def slices(self) -> tuple[TensorSlice, ...]:
        groups = (*self.vectors.values(), *self.matrices())
        return tuple(source for group in groups for source in group)


@dataclass(frozen=True, slots=True)
class Names:
    """Names are all the slices that a checkpoint must hold; it holds nothing else."""

    embedding: TensorSlice
    layers: tuple[LayerNames, ...]
    vectors: Mapping[str, Matrix]  # norm, perhaps norm_bias and head_bias
    head: TensorSlice  # the embedding, if they are tied

    def slices(self) -> tuple[TensorSlice, ...]:
        outside = (self.embedding, self.head, *(source for group in self.vectors.values() for source in group))
        return (*outside, *(source for layer in self.layers for source in layer.slices()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {source.name: source.shape for source in self.slices()}


def names_for(config: ModelConfig, stored: Iterable[str], tied: bool) -> Names:
    """Returns the table of a checkpoint that holds tensors of these names; tied means it stores no head of its own."""
    found = _prefixes(stored)
    table = (config.vocab_size, config.hidden_size)
    embedding = TensorSlice("model.embed_tokens.weight", table)
    return Names(
        embedding=embedding,
        layers=tuple(_layer(config, found, n) for n in range(config.num_hidden_layers)),
        vectors=_outside(config, "model.norm.weight", "model.norm.bias", HEAD_BIAS),
        head=embedding if tied else TensorSlice(HEAD, table),
    )


def _prefixes(names: Iterable[str]) -> frozenset[str]:
    """Returns the names and whatever comes before a dot in one."""
    found: set[str] = set()
    for name in names:
        while name not in found:
            found.add(name)
            name = name.rpartition(".")[0]
    return frozenset(found)


def tile_names(config: ModelConfig, tied: bool) -> Names:
    """Returns the table of a tile file, where each matrix is one piece; tied means that the embedding is the head."""
    table = (config.vocab_size, config.hidden_size)
    embedding = TensorSlice("embedding", table)
    return Names(
        embedding=embedding,
        layers=tuple(_tile_layer(config, n) for n in range(config.num_hidden_layers)),
        vectors=_outside(config, "norm", "norm_bias", "head_bias"),
        head=embedding if tied else TensorSlice("head", table),
    )


def _outside(config: ModelConfig, norm: str, norm_bias: str, head_bias: str) -> dict[str, Matrix]:
    vectors: dict[str, Matrix] = {"norm": (TensorSlice(norm, (config.hidden_size,)),)}
    if config.norm == "layer":
        vectors["norm_bias"] = (TensorSlice(norm_bias, (config.hidden_size,)),)
    if config.head_bias:
        vectors["head_bias"] = (TensorSlice(head_bias, (config.vocab_size,)),)
    return vectors


def _sizes(config: ModelConfig) -> tuple[int, int]:
    """Returns the outputs of a layer's queries, and of its keys."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def _shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the vectors that a layer has."""
    hidden, (queries, keys) = config.hidden_size, _sizes(config)
    wide, count, sparse = config.width(layer), config.experts_in(layer), config.is_sparse(layer)
    normed = {"head": (config.head_dim, config.head_dim), "projection": (queries, keys)}.get(config.qk_norm or "")
    shapes: dict[str, tuple[int, ...] | None] = {
        "input_norm": (hidden,),
        "input_norm_bias": (hidden,) if config.norm == "layer" else None,
        "qkv_bias": (queries + 2 * keys,) if config.qkv_bias else None,
        "o_bias": (hidden,) if config.o_bias else None,
        "q_norm": None if normed is None else normed[:1],
        "k_norm": None if normed is None else normed[1:],
        "sinks": (config.num_attention_heads,) if config.sinks else None,
        "post_norm": (hidden,),
        "post_norm_bias": (hidden,) if config.norm == "layer" else None,
        "router": (count, hidden) if sparse else None,
        "router_bias": (count,) if sparse and config.router_bias else None,
        "gate_up_bias": (count, 2 * wide) if config.expert_bias else None,
        "down_bias": (count, hidden) if config.expert_bias else None,
        "shared_gate": (1, hidden) if sparse and config.shared_intermediate_size else None,
    }
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _tile_layer(config: ModelConfig, index: int) -> LayerNames:
    hidden, (queries, keys) = config.hidden_size, _sizes(config)
    wide, shared = config.width(index), config.shared_intermediate_size

    def piece(name: str, *shape: int) -> Matrix:
        return (TensorSlice(f"layers.{index}.{name}", shape),)

    experts = range(config.experts_in(index))
    return LayerNames(
        index=index,
        vectors={name: piece(name, *shape) for name, shape in _shapes(config, index).items()},
        qkv=piece("qkv", queries + 2 * keys, hidden),
        o=piece("o", hidden, queries),
        gate_up=tuple(piece(f"experts.{n}.gate_up", 2 * wide, hidden) for n in experts),
        down=tuple(piece(f"experts.{n}.down", hidden, wide) for n in experts),
        shared=(piece("shared.gate_up", 2 * shared, hidden), piece("shared.down", hidden, shared))
        if shared and config.is_sparse(index)
        else None,
    )


def _layer(config: ModelConfig, found: frozenset[str], index: int) -> LayerNames:
    prefix, hidden = f"model.layers.{index}", config.hidden_size
    queries, keys = _sizes(config)
    attention = f"{prefix}.self_attn"
    outputs = {"q": queries, "k": keys, "v": keys}
    block = _block(found, prefix)
    gate_up, down = _experts(config, found, index, block)
    shared = config.shared_intermediate_size if config.is_sparse(index) else 0
    return LayerNames(
        index=index,
        vectors=_vectors(config, found, index, block),
        qkv=tuple(TensorSlice(f"{attention}.{name}_proj.weight", (out, hidden)) for name, out in outputs.items()),
        o=(TensorSlice(f"{attention}.o_proj.weight", (hidden, queries)),),
        gate_up=gate_up,
        down=down,
        shared=_feed_forward(f"{block}.shared_expert", ("gate_proj", "up_proj", "down_proj"), shared, hidden)
        if shared
        else None,
    )


def _block(found: frozenset[str], prefix: str) -> str:
    """Returns what the names of a layer's feed-forward begin with: Mixtral's, Granite's and Phi's are their own."""
    own = f"{prefix}.block_sparse_moe"
    return own if own in found else f"{prefix}.mlp"


_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight")  # the last is Granite's


def _vectors(config: ModelConfig, found: frozenset[str], index: int, block: str) -> dict[str, Matrix]:
    prefix, (queries, keys) = f"model.layers.{index}", _sizes(config)
    attention, router = f"{prefix}.self_attn", _router(found, block)
    names = {
        "input_norm": f"{prefix}.input_layernorm.weight",
        "input_norm_bias": f"{prefix}.input_layernorm.bias",
        "o_bias": f"{attention}.o_proj.bias",
        "q_norm": f"{attention}.q_norm.weight",
        "k_norm": f"{attention}.k_norm.weight",
        "sinks": f"{attention}.sinks",
        "post_norm": f"{prefix}.post_attention_layernorm.weight",
        "post_norm_bias": f"{prefix}.post_attention_layernorm.bias",
        "router": router,
        "router_bias": f"{router.removesuffix('.weight')}.bias",
        "down_bias": f"{block}.experts.down_proj_bias",
        "shared_gate": f"{block}.shared_expert_gate.weight",
    }
    shapes = _shapes(config, index)
    vectors: dict[str, Matrix] = {
        name: (TensorSlice(names[name], shape),) for name, shape in shapes.items() if name in names
    }
    if "qkv_bias" in shapes:
        outputs = {"q": queries, "k": keys, "v": keys}
        vectors["qkv_bias"] = tuple(TensorSlice(f"{attention}.{n}_proj.bias", (out,)) for n, out in outputs.items())
    if "gate_up_bias" in shapes:  # gpt-oss alone has these; gate and up alternate
        name = f"{block}.experts.gate_up_proj_bias"
        vectors["gate_up_bias"] = tuple(TensorSlice(name, shapes["gate_up_bias"], every=(n, 2)) for n in range(2))
    return vectors


def _router(found: frozenset[str], block: str) -> str:
    """Returns the name of the router as the checkpoint has it."""
    return next((f"{block}.{name}" for name in _ROUTERS if f"{block}.{name}" in found), f"{block}.{_ROUTERS[0]}")


Experts = tuple[tuple[Matrix, ...], tuple[Matrix, ...]]  # gate_up and down of each expert


def _experts(config: ModelConfig, found: frozenset[str], index: int, block: str) -> Experts:
    wide, hidden = config.width(index), config.hidden_size
    if not config.is_sparse(index):
        return _unzipped([_feed_forward(block, ("gate_proj", "up_proj", "down_proj"), wide, hidden)])
    if stacked := _stacked(config, found, index, block):
        return stacked
    words = ("w1", "w3", "w2") if block.endswith("block_sparse_moe") else ("gate_proj", "up_proj", "down_proj")
    experts = range(config.num_experts)
    return _unzipped([_feed_forward(f"{block}.experts.{n}", words, wide, hidden) for n in experts])


def _feed_forward(prefix: str, words: tuple[str, str, str], wide: int, hidden: int) -> tuple[Matrix, Matrix]:
    """Returns gate_up and down of a feed-forward whose three matrices are stored one by one."""
    gate, up, down = words
    gate_up = tuple(TensorSlice(f"{prefix}.{word}.weight", (wide, hidden)) for word in (gate, up))
    return gate_up, (TensorSlice(f"{prefix}.{down}.weight", (hidden, wide)),)


def _stacked(config: ModelConfig, found: frozenset[str], index: int, block: str) -> Experts | None:
    """Returns the slices of experts that are stored in one tensor for each projection, or None if they are not.

    Granite's are released so, and transformers 5 can save all families so. gpt-oss has inputs before outputs, and gate
    and up alternate.
    """
    count, wide, hidden = config.num_experts, config.width(index), config.hidden_size
    experts = range(count)
    for upper, lower in (
        (f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"),
        (f"{block}.input_linear.weight", f"{block}.output_linear.weight"),
    ):
        if upper not in found and f"{upper}_blocks" not in found:  # The blocks are of MXFP4.
            continue
        if config.expert_bias:
            shapes = (count, hidden, 2 * wide), (count, wide, hidden)
            alternate = [tuple(TensorSlice(upper, shapes[0], n, True, (half, 2)) for half in range(2)) for n in experts]
            return tuple(alternate), tuple((TensorSlice(lower, shapes[1], n, True),) for n in experts)
        shapes = (count, 2 * wide, hidden), (count, hidden, wide)
        gate_up = tuple((TensorSlice(upper, shapes[0], n),) for n in experts)
        return gate_up, tuple((TensorSlice(lower, shapes[1], n),) for n in experts)
    return None


def _unzipped(pairs: list[tuple[Matrix, Matrix]]) -> Experts:
    return tuple(gate_up for gate_up, _ in pairs), tuple(down for _, down in pairs)
