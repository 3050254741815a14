"""Lists where the weights of a decoder lie in its checkpoint: tables of tensor names and shapes."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from octavo.model.config import ModelConfig

HEAD = "lm_head.weight"
DERIVED = ".rotary_emb.inv_freq"  # Older Llama checkpoints have this table; nobody reads it, config.json implies it.


class ExpertNaming(Enum):
    """An ExpertNaming says how the experts are stored."""

    SEPARATE = auto()  # one tensor for each expert and projection: Mixtral as it was released
    STACKED = auto()  # one tensor for each projection: how transformers 5 holds them
    DENSE = auto()  # no router, one feed-forward: Mistral and Llama

    @classmethod
    def of(cls, config: ModelConfig, names: Iterable[str]) -> "ExpertNaming":
        """Returns the naming of a checkpoint that holds tensors of these names."""
        if config.dense:
            return cls.DENSE
        return cls.STACKED if any(name.endswith(".experts.gate_up_proj") for name in names) else cls.SEPARATE


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A TensorSlice is consecutive rows of a matrix: a tensor of the checkpoint, or one expert's share of it."""

    name: str
    shape: tuple[int, ...]  # the whole tensor's
    expert: int | None = None


Matrix = tuple[TensorSlice, ...]  # the slices of one matrix, from its first row to its last


@dataclass(frozen=True, slots=True)
class LayerNames:
    """LayerNames are the slices of one decoder layer."""

    index: int
    input_norm: TensorSlice
    qkv: Matrix
    o: Matrix
    post_norm: TensorSlice
    router: TensorSlice | None  # None in a dense layer
    gate_up: tuple[Matrix, ...]  # one for each expert
    down: tuple[Matrix, ...]

    def slices(self) -> tuple[TensorSlice, ...]:
        matrices = (self.qkv, self.o, *self.gate_up, *self.down)
        router = () if self.router is None else (self.router,)
        return (self.input_norm, self.post_norm, *router, *(source for matrix in matrices for source in matrix))


@dataclass(frozen=True, slots=True)
class Names:
    """Names are all the slices that a checkpoint must hold; it holds nothing else."""

    embedding: TensorSlice
    layers: tuple[LayerNames, ...]
    norm: TensorSlice
    head: TensorSlice  # the embedding, if they are tied

    def shapes(self) -> dict[str, tuple[int, ...]]:
        slices = [self.embedding, self.norm, self.head, *(source for layer in self.layers for source in layer.slices())]
        return {source.name: source.shape for source in slices}


def names_for(config: ModelConfig, naming: ExpertNaming, tied: bool) -> Names:
    """Returns the table of a checkpoint; tied means that it stores no head of its own."""
    table = (config.vocab_size, config.hidden_size)
    embedding = TensorSlice("model.embed_tokens.weight", table)
    return Names(
        embedding=embedding,
        layers=tuple(_layer(config, naming, n) for n in range(config.num_hidden_layers)),
        norm=TensorSlice("model.norm.weight", (config.hidden_size,)),
        head=embedding if tied else TensorSlice(HEAD, table),
    )


def tile_names(config: ModelConfig, tied: bool) -> Names:
    """Returns the table of a tile file, where each matrix is one piece; tied means that the embedding is the head."""
    table = (config.vocab_size, config.hidden_size)
    embedding = TensorSlice("embedding", table)
    return Names(
        embedding=embedding,
        layers=tuple(_tile_layer(config, n) for n in range(config.num_hidden_layers)),
        norm=TensorSlice("norm", (config.hidden_size,)),
        head=embedding if tied else TensorSlice("head", table),
    )


def _tile_layer(config: ModelConfig, index: int) -> LayerNames:
    hidden, wide, count = config.hidden_size, config.intermediate_size, config.num_experts
    queries = config.num_attention_heads * config.head_dim
    rows = queries + 2 * config.num_key_value_heads * config.head_dim

    def piece(name: str, *shape: int) -> TensorSlice:
        return TensorSlice(f"layers.{index}.{name}", shape)

    return LayerNames(
        index=index,
        input_norm=piece("input_norm", hidden),
        qkv=(piece("qkv", rows, hidden),),
        o=(piece("o", hidden, queries),),
        post_norm=piece("post_norm", hidden),
        router=None if config.dense else piece("router", count, hidden),
        gate_up=tuple((piece(f"experts.{n}.gate_up", 2 * wide, hidden),) for n in range(count)),
        down=tuple((piece(f"experts.{n}.down", hidden, wide),) for n in range(count)),
    )


def _layer(config: ModelConfig, naming: ExpertNaming, index: int) -> LayerNames:
    prefix, hidden = f"model.layers.{index}", config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    router, gate_up, down = _FEED_FORWARD[naming](config, prefix)
    return LayerNames(
        index=index,
        input_norm=TensorSlice(f"{prefix}.input_layernorm.weight", (hidden,)),
        qkv=(
            TensorSlice(f"{prefix}.self_attn.q_proj.weight", (queries, hidden)),
            TensorSlice(f"{prefix}.self_attn.k_proj.weight", (keys, hidden)),
            TensorSlice(f"{prefix}.self_attn.v_proj.weight", (keys, hidden)),
        ),
        o=(TensorSlice(f"{prefix}.self_attn.o_proj.weight", (hidden, queries)),),
        post_norm=TensorSlice(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        router=router,
        gate_up=gate_up,
        down=down,
    )


FeedForward = tuple[TensorSlice | None, tuple[Matrix, ...], tuple[Matrix, ...]]  # router, gate_up, down


def _separate(config: ModelConfig, layer: str) -> FeedForward:
    prefix = f"{layer}.block_sparse_moe"
    wide, hidden = config.intermediate_size, config.hidden_size
    gate_up, down = [], []
    for n in range(config.num_experts):
        expert = f"{prefix}.experts.{n}"
        gate_up.append(
            (TensorSlice(f"{expert}.w1.weight", (wide, hidden)), TensorSlice(f"{expert}.w3.weight", (wide, hidden)))
        )
        down.append((TensorSlice(f"{expert}.w2.weight", (hidden, wide)),))
    return _router(config, prefix), tuple(gate_up), tuple(down)


def _stacked(config: ModelConfig, layer: str) -> FeedForward:
    prefix = f"{layer}.mlp"
    count, wide, hidden = config.num_experts, config.intermediate_size, config.hidden_size
    gate_up = tuple(
        (TensorSlice(f"{prefix}.experts.gate_up_proj", (count, 2 * wide, hidden), n),) for n in range(count)
    )
    down = tuple((TensorSlice(f"{prefix}.experts.down_proj", (count, hidden, wide), n),) for n in range(count))
    return _router(config, prefix), gate_up, down


def _dense(config: ModelConfig, layer: str) -> FeedForward:
    prefix = f"{layer}.mlp"
    wide, hidden = config.intermediate_size, config.hidden_size
    gate, up = (TensorSlice(f"{prefix}.{name}_proj.weight", (wide, hidden)) for name in ("gate", "up"))
    return None, ((gate, up),), ((TensorSlice(f"{prefix}.down_proj.weight", (hidden, wide)),),)


def _router(config: ModelConfig, prefix: str) -> TensorSlice:
    return TensorSlice(f"{prefix}.gate.weight", (config.num_experts, config.hidden_size))


_FEED_FORWARD = {ExpertNaming.SEPARATE: _separate, ExpertNaming.STACKED: _stacked, ExpertNaming.DENSE: _dense}
