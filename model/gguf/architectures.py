"""Lists the architectures of GGUF files that are read, and the models of transformers that they are."""

from dataclasses import dataclass
from reprlib import repr as shortened

from octavo.model.config_file import ModelError
from octavo.model.gguf.file import GgufModel

# Roles of a layer's tensors in a file, and in transformers' checkpoints.
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
DENSE = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An Architecture says how a model of transformers is stored in a GGUF file."""

    model_type: str
    prefix: str  # of the names of its metadata
    roles: dict[str, str]
    experts: dict[str, str] | None = None  # roles of an expert; None: the model is dense
    experts_in: str = ""  # the module that has the experts
    pairs: bool = False  # rows of q and k that are rotated together are neighbours
    biases: bool = False  # q, k and v have biases


_MIXTRAL = Architecture(
    model_type="mixtral",
    prefix="llama",
    roles=ATTENTION | {"ffn_gate_inp": "block_sparse_moe.gate"},
    experts={"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"},
    experts_in="block_sparse_moe.experts",
    pairs=True,
)
_QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    prefix="qwen3moe",
    roles=ATTENTION | _HEAD_NORMS | {"ffn_gate_inp": "mlp.gate"},
    experts={"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"},
    experts_in="mlp.experts",
)
_LLAMA = Architecture("llama", "llama", ATTENTION | DENSE, pairs=True)
_MISTRAL = Architecture("mistral", "llama", ATTENTION | DENSE, pairs=True)
_QWEN2 = Architecture("qwen2", "qwen2", ATTENTION | DENSE, biases=True)
_QWEN3 = Architecture("qwen3", "qwen3", ATTENTION | _HEAD_NORMS | DENSE)
_ALONE = {each.prefix: each for each in (_QWEN3_MOE, _QWEN2, _QWEN3)}


def architecture_of(model: GgufModel) -> Architecture:
    """Returns the architecture that the metadata name. Raises ModelError for one that is not read."""
    kind = model.metadata.get("general.type", "model")
    if kind != "model":  # an adapter, a matrix of importances, the part of a model that reads images
        raise ModelError(
            f"{model.paths[0]} holds no model, since its general.type is {shortened(kind)}; give the file of the "
            "model itself."
        )
    name = model.metadata.get("general.architecture")
    if name == "llama":  # It also covers Mixtral and Mistral, which differ from Llama in what else the metadata say.
        if model.metadata.get("llama.expert_count"):
            return _MIXTRAL
        return _MISTRAL if model.metadata.get("llama.attention.sliding_window") else _LLAMA
    found = _ALONE.get(name) if isinstance(name, str) else None
    if found is None:
        raise ModelError(
            f"{model.paths[0]} holds a model of the architecture {shortened(name)}, and only llama (which covers "
            f"Mixtral and Mistral), {', '.join(_ALONE)} are read from GGUF; use its checkpoint in safetensors."
        )
    return found
