"""Knows what config.json and generation_config.json mean; nothing else in the house does. It imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ConfigFile
from octavo.model.config_file import ModelError as ModelError  # Whoever reads a config takes its error from here.

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("auto", "none", "int8", "int4", "fp8")

# What each model_type means where its config.json has no such key, as in transformers' configuration classes.
_COMMON = {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**_COMMON, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "mistral": {**_COMMON, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "sliding_window": 4096},
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
}
MOST_TOP_K = 2**31 - 1  # no vocabulary is larger
MOST_STRETCH = 1_000_000  # how many times longer a wavelength may become
MOST_LAYERS, MOST_EXPERTS = 10_000, 100_000  # A table of tensors that is much longer fills the memory.

# What else a generation_config.json may ask for that changes answers, and the values with which it asks for nothing.
_OFF: tuple[Any, ...] = (None, False, [], {})
_PASSED_OVER: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("typical_p", "top_h", "guidance_scale", "num_beams", "encoder_repetition_penalty"), (*_OFF, 1)),
    **dict.fromkeys(
        ("epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "min_length", "min_new_tokens"), (*_OFF, 0)
    ),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), _OFF),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), _OFF),
    **dict.fromkeys(("stop_strings", "penalty_alpha"), _OFF),
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """A RopeScaling says how Llama 3.1 stretches rotary wavelengths to a longer context (rope type "llama3").

    RotaryEmbedding has the arithmetic.
    """

    factor: float
    low_freq_factor: float  # turns within the original context, below which a wavelength is stretched in full
    high_freq_factor: float  # turns from which on it stays as it is; more than low_freq_factor
    original_max_position_embeddings: int  # tokens


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A ModelConfig holds the sizes of a decoder, under the names of its config.json.

    The decoder is Mixtral's (https://arxiv.org/abs/2401.04088). A dense one, Mistral's (https://arxiv.org/abs/2310.06825)
    or Llama's (https://arxiv.org/abs/2302.13971), has a single expert that always runs, and no router.
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
        fields = ConfigFile(fields.path, FAMILIES[model_type] | fields.values)
        dense = model_type != "mixtral"
        heads = fields.integer("num_attention_heads")
        hidden_size = fields.integer("hidden_size")
        rope_theta, rope_scaling = _rope(fields)
        config = cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", default=heads),
            head_dim=fields.integer("head_dim", default=max(1, hidden_size // heads)),
            num_experts=1 if dense else fields.integer("num_local_experts", "num_experts"),
            num_experts_per_tok=1 if dense else fields.integer("num_experts_per_tok"),
            dense=dense,
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=fields.integer("max_position_embeddings"),
            # transformers' Llama sees every key, whatever a file says.
            sliding_window=None if model_type == "llama" else fields.optional_integer("sliding_window"),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            dtype=_dtype(fields),
            eos_token_ids=fields.token_ids("eos_token_id"),
        )
        config._check(fields)
        return config

    def num_parameters(self) -> int:
        """Counts all weights; a tied head counts once."""
        head = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        outside = self.vocab_size * self.hidden_size + head + self.hidden_size
        attention = 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)
        router = 0 if self.dense else self.num_experts * self.hidden_size
        layer = attention + 2 * self.hidden_size + router + self.num_experts * self._expert_parameters()
        return outside + self.num_hidden_layers * layer

    def num_active_parameters(self) -> int:
        """Counts the weights that one token passes through."""
        idle = self.num_experts - self.num_experts_per_tok
        return self.num_parameters() - self.num_hidden_layers * idle * self._expert_parameters()

    def num_expert_parameters(self) -> int:
        """Counts the weights of all experts."""
        return self.num_hidden_layers * self.num_experts * self._expert_parameters()

    def _expert_parameters(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

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
        if self.rope_theta < 1:
            raise fields.error(f"rope_theta is {self.rope_theta!r}, and frequencies need a base of at least 1")
        if self.rms_norm_eps >= 1:
            raise fields.error(f"rms_norm_eps is {self.rms_norm_eps!r}, and not below 1")


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """A GenerationConfig holds what generation_config.json recommends; a field that it leaves out is None.

    Each value means what it means to transformers, and one that has no meaning there is refused.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None  # 0: greedy
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    passed_over: tuple[str, ...] = ()  # what the file asks for besides, and nobody here does

    @classmethod
    def from_pretrained(cls, directory: Path) -> "GenerationConfig":
        """Reads the file; end-of-sequence ids that it lacks come from config.json. Raises ModelError."""
        eos = ConfigFile.read(directory / "config.json").token_ids("eos_token_id")
        fields = ConfigFile.read_if_there(directory / "generation_config.json")
        if fields is None:
            return cls(eos_token_ids=eos)
        always = cls(
            eos_token_ids=fields.token_ids("eos_token_id") or eos,
            repetition_penalty=fields.optional_number("repetition_penalty", 0.01, 100),
            passed_over=tuple(name for name in _PASSED_OVER if fields.values.get(name) not in _PASSED_OVER[name]),
        )
        # Numbers beside "do_sample": false are leftovers: greedy decoding ignores them, and so do we.
        if fields.values.get("do_sample") is False:
            return always
        top_k, top_p = fields.optional_integer("top_k", least=-1), fields.optional_number("top_p")
        return replace(
            always,
            temperature=fields.optional_number("temperature", 0, 100),
            top_k=min(top_k, MOST_TOP_K) if top_k is not None and top_k > 0 else None,  # 0 and -1 keep every token
            top_p=top_p if top_p is not None and top_p < 1 else None,
            min_p=fields.optional_number("min_p", 0, 1),
        )


def _refuse_other_models(fields: ConfigFile) -> None:
    """Raises ModelError for a model that would load without complaint and be computed wrongly."""
    model_type = fields.values.get("model_type")
    if model_type not in tuple(FAMILIES):  # not in the dict itself, which would hash whatever the file holds
        known = ", ".join(map(repr, FAMILIES))
        raise fields.error(f"model_type is {shortened(model_type)}, and only {known} checkpoints can be served")
    hidden_act = fields.values.get("hidden_act") or "silu"
    if hidden_act != "silu":
        raise fields.error(f"hidden_act is {shortened(hidden_act)}, and only 'silu' is known")
    for name in ("attention_bias", "mlp_bias"):
        if fields.values.get(name):
            raise fields.error(f"{name} is set, and layers with a bias are not known")
    layer_types = fields.values.get("layer_types")
    if isinstance(layer_types, list) and len(set(map(str, layer_types))) > 1:
        raise fields.error("layer_types differ, and all layers of a model attend alike here")
    if fields.values.get("quantization_config"):
        raise fields.error("the checkpoint is quantised (quantization_config); use one in bfloat16, float16 or float32")


def _rope(fields: ConfigFile) -> tuple[float, RopeScaling | None]:
    """Reads the base of the rotary frequencies and their scaling; rope_parameters is a newer name of rope_scaling."""
    rope = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise fields.error("rope_parameters is not one set of numbers for all layers")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise fields.error(f"the rope type is {shortened(kind)}, and only 'default' and 'llama3' are known")
    if rope.get("partial_rotary_factor", 1) != 1 or (fields.values.get("partial_rotary_factor") or 1) != 1:
        raise fields.error("partial_rotary_factor is set, and only whole heads are rotated")
    nested = ConfigFile(fields.path, rope)
    theta = nested.number("rope_theta") if "rope_theta" in rope else fields.number("rope_theta")
    return theta, _llama3(nested, fields) if kind == "llama3" else None


def _llama3(rope: ConfigFile, fields: ConfigFile) -> RopeScaling:
    original = "original_max_position_embeddings"
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=fields.optional_integer(original)
        or rope.integer(original, default=fields.integer("max_position_embeddings")),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.error(
            f"high_freq_factor ({scaling.high_freq_factor}) is not more than "
            f"low_freq_factor ({scaling.low_freq_factor})"
        )
    if not (1 <= scaling.factor <= MOST_STRETCH and scaling.high_freq_factor <= MOST_STRETCH):
        raise rope.error(
            f"factor ({scaling.factor}) or high_freq_factor ({scaling.high_freq_factor}) "
            f"is not from 1 to {MOST_STRETCH}"
        )
    return scaling


def _dtype(fields: ConfigFile) -> str | None:
    for name in ("dtype", "torch_dtype"):
        value = fields.values.get(name)
        if value is not None:
            short = str(value).removeprefix("torch.")
            if short not in DTYPES:
                raise fields.error(f"{name} is {shortened(value)}, and only {', '.join(DTYPES)} are known")
            return short
    return None
