"""Writes GGUF files of random blocks: Q4_0, or the mixture that llama.cpp calls Q4_K_M for eight experts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from benchmarks.common.checkpoint import SPECIAL, vocabulary
from benchmarks.common.gguf_metadata import describe
from benchmarks.peers.true_shape.shape import EXPERTS, HIDDEN, KEYS, TABLE, WIDE
from octavo.model.config import ModelConfig

Type = gguf.GGMLQuantizationType
Report = Callable[[int, int], None]
# Places of float16 numbers in a block, and what multiplies 1 / sqrt(inputs) to become them.
SCALES: dict[Type, dict[int, float]] = {
    Type.Q4_0: {0: 0.2},
    Type.Q8_0: {0: 0.014},
    Type.Q4_K: {0: 0.004, 2: 0.03},
    Type.Q5_K: {0: 0.002, 2: 0.03},
    Type.Q6_K: {208: 0.0007},
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """A Mixture says which type each kind of matrix has."""

    attention: dict[str, Type]
    experts: Type
    down: Callable[[int, int], Type]  # of a layer, in a model of so many
    head: Type

    @classmethod
    def of(cls, name: str) -> "Mixture":
        """Returns Q4_0, or Q4_K_M as llama-quantize mixes it for eight experts."""
        if name == "Q4_0":
            plain = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), Type.Q4_0)
            return cls(plain, Type.Q4_0, lambda layer, layers: Type.Q4_0, Type.Q6_K)
        mixed = {"attn_q": Type.Q4_K, "attn_k": Type.Q8_0, "attn_v": Type.Q8_0, "attn_output": Type.Q5_K}
        return cls(mixed, Type.Q4_K, lambda n, layers: Type.Q6_K if _costs_most(n, layers) else Type.Q4_K, Type.Q6_K)


def _costs_most(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def write(path: Path, name: str, config: ModelConfig, seed: int, report: Report) -> Path:
    """Writes a file of a mixture, unless it is there."""
    if path.is_file():
        return path
    mixture, random = Mixture.of(name), np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama", use_temp_file=False)
    describe(writer, config)
    _describe_tokens(writer, config.vocab_size)
    plan = _plan(mixture, config.num_hidden_layers)
    for tensor, shape, kind in plan:
        size = gguf.quant_shape_to_byte_shape(shape, kind)
        nbytes = int(np.prod(size)) * (4 if kind is Type.F32 else 1)
        dtype = np.dtype(np.float32 if kind is Type.F32 else np.uint8)
        given = shape if kind is Type.F32 else size
        writer.add_tensor_info(tensor, given, dtype, nbytes if kind is not Type.F32 else 4 * int(np.prod(shape)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (_, shape, kind) in enumerate(plan, start=1):
        writer.write_tensor_data(_values(shape, kind, random))
        report(done, len(plan))
    writer.close()
    return partial.replace(path)


def _plan(mixture: Mixture, layers: int) -> list[tuple[str, tuple[int, ...], Type]]:
    plan: list[tuple[str, tuple[int, ...], Type]] = [
        ("token_embd.weight", TABLE, Type.Q8_0),
        ("output_norm.weight", (HIDDEN,), Type.F32),
        ("output.weight", TABLE, mixture.head),
    ]
    outputs = {"attn_q": HIDDEN, "attn_k": KEYS, "attn_v": KEYS, "attn_output": HIDDEN}
    for n in range(layers):
        prefix = f"blk.{n}"
        plan += [(f"{prefix}.{name}.weight", (HIDDEN,), Type.F32) for name in ("attn_norm", "ffn_norm")]
        plan += [(f"{prefix}.{name}.weight", (out, HIDDEN), mixture.attention[name]) for name, out in outputs.items()]
        plan.append((f"{prefix}.ffn_gate_inp.weight", (EXPERTS, HIDDEN), Type.F32))
        plan += [
            (f"{prefix}.ffn_{name}_exps.weight", (EXPERTS, WIDE, HIDDEN), mixture.experts) for name in ("gate", "up")
        ]
        plan.append((f"{prefix}.ffn_down_exps.weight", (EXPERTS, HIDDEN, WIDE), mixture.down(n, layers)))
    return plan


def _values(shape: tuple[int, ...], kind: Type, random: np.random.Generator) -> np.ndarray:
    if kind is Type.F32:
        is_norm = len(shape) == 1
        return np.ones(shape, np.float32) if is_norm else (random.standard_normal(shape, np.float32) / shape[-1] ** 0.5)
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (int(np.prod(shape)) // size, nbytes), np.uint8)
    for place, factor in SCALES[kind].items():
        scale = np.array([factor / shape[-1] ** 0.5], np.float16)
        blocks[:, place : place + 2] = scale.view(np.uint8)
    return blocks


def _describe_tokens(writer: gguf.GGUFWriter, size: int) -> None:
    """Writes a vocabulary without merges: nothing is encoded here."""
    tokens = vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
