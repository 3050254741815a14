"""Writes safetensors checkpoints of random integers, in the layouts of GPTQ and AWQ: 4 bits in groups of 128."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.checkpoint import write_files
from benchmarks.peers.true_shape.shape import EXPERTS, HIDDEN, TABLE, Linear, attention, config, experts

GROUP = 128
SPREAD = 4.6  # the root mean square of 16 even steps around their middle
INDEX = "model.safetensors.index.json"
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    "awq": {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "modules_to_not_convert": ["gate"],
    },
}
Report = Callable[[int, int], None]  # layers written, layers in all


def write(directory: Path, method: str, layers: int, seed: int, report: Report) -> Path:
    """Writes a file for each layer, and the rest; nothing is written again. The seed decides every integer."""
    if (directory / INDEX).is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    write_files(directory, config(layers) | {"quantization_config": METHODS[method]})
    places: dict[str, str] = {}
    for part in range(layers + 1):
        generator = torch.Generator().manual_seed(seed * 1000 + part)
        tensors = dict(_outside(generator) if part == layers else _layer(method, part, generator))
        name = f"model-{part:05}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        report(part + 1, layers + 1)
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))
    return directory


def _outside(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", torch.randn(TABLE, generator=generator).half()
    yield "model.norm.weight", torch.ones(HIDDEN).half()
    yield "lm_head.weight", (torch.randn(TABLE, generator=generator) / HIDDEN**0.5).half()


def _layer(method: str, layer: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", torch.ones(HIDDEN).half()
    yield f"{prefix}.post_attention_layernorm.weight", torch.ones(HIDDEN).half()
    router = torch.randn(EXPERTS, HIDDEN, generator=generator) / HIDDEN**0.5
    yield f"{prefix}.block_sparse_moe.gate.weight", router.half()
    for linear in (*attention(layer), *experts(layer)):
        for end, tensor in _packed(method, linear, generator).items():
            yield f"{linear.name}.{end}", tensor


def _packed(method: str, linear: Linear, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns words of random codes, zeros of 7 or 8, and scales with which activations keep their size."""
    out, inputs = linear.out, linear.inputs
    groups = inputs // GROUP
    words = (inputs // 8, out) if method == "gptq" else (inputs, out // 8)
    zeros = torch.randint(0, 2, (groups, out // 8, 8), generator=generator) + (6 if method == "gptq" else 7)
    shifted = (zeros << 4 * torch.arange(8)).sum(-1)
    scales = (0.8 + 0.4 * torch.rand(groups, out, generator=generator)) / (SPREAD * inputs**0.5)
    return {
        "qweight": torch.randint(-(2**31), 2**31, words, generator=generator, dtype=torch.int64).int(),
        "qzeros": torch.where(shifted >= 2**31, shifted - 2**32, shifted).int(),
        "scales": scales.half(),
    }
