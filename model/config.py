"""Knows what config.json means; with families.py and rope_config.py it alone reads it. It imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ConfigFile
from octavo.model.config_file import ModelError as ModelError  # Whoever reads a config takes its error from here.
from octavo.model.families import FAMILIES, Swiglu
from octavo.model.rope_config import RopeScaling, read_rope

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("auto", "none", "int8", "int4", "fp8")
MOST_LAYERS, MOST_EXPERTS = 10_000, 100_000  # A table of tensors that is much longer fills the memory.


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A ModelConfig holds the sizes of a decoder, under the names of its config.json.

    The decoder is Mixtral's (https://arxiv.org/abs/2401.04088), with what other families add: see families.py. A dense
    one, such as Mistral's (https://arxiv.org/abs/2310.06825) or Llama's (https://arxiv.org/abs/2302.13971), has one
    expert, which always runs, and no router.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # for each expert
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # divides num_attention_heads
    head_dim: int  # even
    num_experts: int
    num_experts_per_tok: int  # 1 to num_experts
    dense: bool = False  # no router; num_experts is 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 4096 * 32  # tokens
    sliding_window: int | None = None  # position p sees the keys of (p - window, p]; None: all before it
    tie_word_embeddings: bool = False
    dtype: str | None = None  # what config.json says the tensors are: one of DTYPES
    eos_token_ids: tuple[int, ...] = ()
    dense_layers: tuple[int, ...] = ()  # of a sparse model: those without a router
    dense_intermediate_size: int = 0  # of those
    shared_intermediate_size: int = 0  # of an expert that runs beside the chosen ones, behind a gate; 0: there is none
    windowed: tuple[bool, ...] = ()  # for each layer, whether it has the window; empty: all have it
    norm: str = "rms"  # or "layer", whose bias is added
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str | None = None  # queries and keys are normed: each "head", or the whole "projection"
    clip_qkv: float | None = None  # the largest magnitude of queries, keys and values
    attention_scale: float | None = None  # of the scores; None: head_dim ** -0.5
    sinks: bool = False  # Each query head has a logit that takes a share of its attention.
    normalise_top_k: bool = True  # The chosen experts' weights sum to 1.
    jitter: float | None = None  # Phi's sparse mixer chooses, with this noise; None: the largest logits are chosen
    router_bias: bool = False
    expert_bias: bool = False
    head_bias: bool = False
    activation: Swiglu = Swiglu()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and experts add
    logits_scaling: float = 1.0  # divides the logits

    @classmethod
    def from_pretrained(cls, directory: Path) -> "ModelConfig":
        """Reads config.json, as older and newer transformers write it. Raises ModelError."""
        if not directory.is_dir():
            raise ModelError(
                f"There is no directory {directory}; give the path of a downloaded checkpoint or a hub id."
            )
        fields = ConfigFile.read(directory / "config.json")
        _refuse_other_models(fields)
        model_type = fields.values["model_type"]
        family = FAMILIES[model_type]
        fields = ConfigFile(fields.path, family.defaults | fields.values)
        if fields.integer("num_hidden_layers") > MOST_LAYERS:
            raise fields.error(f"{fields.integer('num_hidden_layers')} layers are too many")
        config = cls(**(_common(fields) | family.describe(fields)))
        config._check(fields)
        return config

    def is_sparse(self, layer: int) -> bool:
        """Returns whether a layer has a router."""
        return not self.dense and layer not in self.dense_layers

    def sparse_layers(self) -> tuple[int, ...]:
        """Returns the layers that have a router."""
        return tuple(filter(self.is_sparse, range(self.num_hidden_layers)))

    def width(self, layer: int) -> int:
        """Returns the inner width of a layer's experts, or of its only feed-forward."""
        return self.intermediate_size if self.dense or self.is_sparse(layer) else self.dense_intermediate_size

    def experts_in(self, layer: int) -> int:
        """Returns how many experts a layer has; a dense one has a single one."""
        return self.num_experts if self.is_sparse(layer) else 1

    def window(self, layer: int) -> int | None:
        """Returns how many positions a token of a layer sees, its own included; None: all before it."""
        return None if self.windowed and not self.windowed[layer] else self.sliding_window

    def windows(self) -> frozenset[int | None]:
        """Returns the windows of all layers."""
        return frozenset(map(self.window, range(self.num_hidden_layers)))

    def num_parameters(self) -> int:
        """Counts all weights; a tied head counts once."""
        return self._shared_parameters() + self.num_expert_parameters()

    def num_active_parameters(self) -> int:
        """Counts the weights that one token passes through."""
        chosen = {True: self.num_experts_per_tok, False: 1}
        active = sum(chosen[self.is_sparse(n)] * self._expert_parameters(n) for n in range(self.num_hidden_layers))
        return self._shared_parameters() + active

    def num_expert_parameters(self) -> int:
        """Counts the weights of all experts, the only ones of dense layers among them."""
        return sum(self.experts_in(n) * self._expert_parameters(n) for n in range(self.num_hidden_layers))

    def _expert_parameters(self, layer: int) -> int:
        biases = 2 * self.width(layer) + self.hidden_size if self.expert_bias else 0
        return 3 * self.hidden_size * self.width(layer) + biases

    def _shared_parameters(self) -> int:
        """Counts the weights that every token passes through."""
        hidden, norms = self.hidden_size, 2 if self.norm == "layer" else 1
        head = 0 if self.tie_word_embeddings else self.vocab_size * hidden
        outside = self.vocab_size * (hidden + self.head_bias) + head + norms * hidden
        sparse = len(self.sparse_layers())
        router = self.num_experts * (hidden + self.router_bias)
        shared = 3 * hidden * self.shared_intermediate_size + hidden if self.shared_intermediate_size else 0
        layers = self.num_hidden_layers * (self._attention_parameters() + 2 * norms * hidden)
        return outside + layers + sparse * (router + shared)

    def _attention_parameters(self) -> int:
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        biases = self.qkv_bias * (queries + 2 * keys) + self.o_bias * self.hidden_size
        normed = {None: 0, "head": 2 * self.head_dim, "projection": queries + keys}[self.qk_norm]
        sinks = self.num_attention_heads if self.sinks else 0
        return 2 * self.hidden_size * (queries + keys) + biases + normed + sinks

    def _check(self, fields: ConfigFile) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise fields.error(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise fields.error(f"head_dim ({self.head_dim}) is odd, rotary embeddings need pairs")
        if self.num_experts_per_tok > self.num_experts:
            raise fields.error(
                f"num_experts_per_tok ({self.num_experts_per_tok}) is more than num_experts ({self.num_experts})"
            )
        if self.num_hidden_layers > MOST_LAYERS or self.num_hidden_layers * self.num_experts > MOST_EXPERTS:
            raise fields.error(f"{self.num_hidden_layers} layers of {self.num_experts} experts are too many")
        if self.max_position_embeddings < 2:
            raise fields.error("max_position_embeddings is 1, and a prompt and its answer need two positions")
        if self.rms_norm_eps >= 1:
            raise fields.error(f"rms_norm_eps is {self.rms_norm_eps!r}, and not below 1")


def _refuse_other_models(fields: ConfigFile) -> None:
    """Raises ModelError for a model that would load without complaint and be computed wrongly."""
    model_type = fields.values.get("model_type")
    if model_type not in tuple(FAMILIES):  # not in the dict itself, which would hash whatever the file holds
        known = ", ".join(map(repr, FAMILIES))
        raise fields.error(f"model_type is {shortened(model_type)}, and only {known} checkpoints can be served")
    hidden_act = fields.values.get("hidden_act") or "silu"
    if hidden_act != "silu":
        raise fields.error(f"hidden_act is {shortened(hidden_act)}, and only 'silu' is known")


def _common(fields: ConfigFile) -> dict[str, Any]:
    """Reads what means the same in all families."""
    heads, hidden_size = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", default=max(1, hidden_size // heads))
    rope_theta, rope_scaling = read_rope(fields, head_dim)
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_hidden_layers": fields.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("num_key_value_heads", default=heads),
        "head_dim": head_dim,
        "rms_norm_eps": fields.number("rms_norm_eps"),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "dtype": _dtype(fields),
        "eos_token_ids": fields.token_ids("eos_token_id"),
    }


def _dtype(fields: ConfigFile) -> str | None:
    for name in ("dtype", "torch_dtype"):
        value = fields.values.get(name)
        if value is not None:
            short = str(value).removeprefix("torch.")
            if short not in DTYPES:
                raise fields.error(f"{name} is {shortened(value)}, and only {', '.join(DTYPES)} are known")
            return short
    return None
