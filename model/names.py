"""Where the weights of a Mixtral decoder lie in its checkpoint: tensor names and shapes as tables."""

from dataclasses import dataclass
from enum import Enum

from model.config import ModelConfig

HEAD = "lm_head.weight"


class Layout(Enum):
    """How the experts are stored; the value is the prefix of the sparse block inside its layer."""

    PER_EXPERT = "block_sparse_moe"  # one tensor per expert and projection, as released
    FUSED = "mlp"  # one tensor per projection, as transformers 5 holds them


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a matrix: a tensor of the checkpoint, or one expert's share of it."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    expert: int | None = None


Matrix = tuple[Part, ...]  # the parts of one matrix, from its first row to its last


@dataclass(frozen=True, slots=True)
class LayerNames:
    """The parts of one decoder layer."""

    input_norm: Part
    qkv: Matrix
    o: Matrix
    post_norm: Part
    router: Part
    gate_up: tuple[Matrix, ...]  # one per expert
    down: tuple[Matrix, ...]

    def parts(self) -> tuple[Part, ...]:
        matrices = (self.qkv, self.o, *self.gate_up, *self.down)
        return (self.input_norm, self.post_norm, self.router, *(part for matrix in matrices for part in matrix))


@dataclass(frozen=True, slots=True)
class Names:
    """Everything a checkpoint of this shape must hold, and nothing else."""

    embedding: Part
    layers: tuple[LayerNames, ...]
    norm: Part
    head: Part  # the embedding, where they are tied

    def shapes(self) -> dict[str, tuple[int, ...]]:
        parts = [self.embedding, self.norm, self.head, *(part for layer in self.layers for part in layer.parts())]
        return {part.name: part.shape for part in parts}


def names_for(config: ModelConfig, layout: Layout, tied: bool) -> Names:
    """The table of one checkpoint; tied means that it stores no head of its own."""
    table = (config.vocab_size, config.hidden_size)
    embedding = Part("model.embed_tokens.weight", table)
    return Names(
        embedding=embedding,
        layers=tuple(_layer(config, layout, f"model.layers.{n}") for n in range(config.num_hidden_layers)),
        norm=Part("model.norm.weight", (config.hidden_size,)),
        head=embedding if tied else Part(HEAD, table),
    )


def _layer(config: ModelConfig, layout: Layout, prefix: str) -> LayerNames:
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    experts = _experts_fused if layout is Layout.FUSED else _experts_apart
    sparse = f"{prefix}.{layout.value}"
    gate_up, down = experts(config, f"{sparse}.experts")
    return LayerNames(
        input_norm=Part(f"{prefix}.input_layernorm.weight", (hidden,)),
        qkv=(
            Part(f"{prefix}.self_attn.q_proj.weight", (queries, hidden)),
            Part(f"{prefix}.self_attn.k_proj.weight", (keys, hidden)),
            Part(f"{prefix}.self_attn.v_proj.weight", (keys, hidden)),
        ),
        o=(Part(f"{prefix}.self_attn.o_proj.weight", (hidden, queries)),),
        post_norm=Part(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        router=Part(f"{sparse}.gate.weight", (config.num_experts, hidden)),
        gate_up=gate_up,
        down=down,
    )


def _experts_apart(config: ModelConfig, prefix: str) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
    wide, hidden = config.intermediate_size, config.hidden_size
    gate_up, down = [], []
    for n in range(config.num_experts):
        gate_up.append(
            (Part(f"{prefix}.{n}.w1.weight", (wide, hidden)), Part(f"{prefix}.{n}.w3.weight", (wide, hidden)))
        )
        down.append((Part(f"{prefix}.{n}.w2.weight", (hidden, wide)),))
    return tuple(gate_up), tuple(down)


def _experts_fused(config: ModelConfig, prefix: str) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
    count, wide, hidden = config.num_experts, config.intermediate_size, config.hidden_size
    gate_up = tuple((Part(f"{prefix}.gate_up_proj", (count, 2 * wide, hidden), n),) for n in range(count))
    down = tuple((Part(f"{prefix}.down_proj", (count, hidden, wide), n),) for n in range(count))
    return gate_up, down
