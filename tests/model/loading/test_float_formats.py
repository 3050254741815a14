"""Tests whole checkpoints whose formats have no even steps: MXFP4 keeps its blocks, FP8 is decoded."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.loading.names import names_for
from octavo.model.loading.reader import Reader
from octavo.model.loading.shards import Shards
from octavo.model.loading.takeover import Takeover
from octavo.model.weights.kinds import Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.stack import StackedWeight
from tests.model.checkpoints import load
from tests.model.loading.quantised import packing
from tests.model.loading.test_takeover import SIZES, Tensors, as_plain, is_quantised, logits
from tests.tiny import write_tiny_checkpoint


def test_the_experts_of_gpt_oss_keep_their_blocks(tmp_path: Path) -> None:
    """Gate and up alternate in one tensor of all experts, beside their biases."""
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    for directory, described in ((tmp_path, {"quantization_config": config}), (tmp_path / "plain", {})):
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(GPT_OSS | described))
    plain = gpt_oss_tensors()
    quantised: Tensors = {}
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in plain if name.endswith("_proj") and "experts" in name]:
        experts, inputs, out = plain[name].shape
        codes = torch.randint(0, 16, (experts, out, inputs), generator=generator)
        scales = torch.randint(120, 124, (experts, out, inputs // 32), generator=generator).to(torch.uint8)
        for each in range(experts):
            for end, tensor in packing.mxfp4(codes[each], scales[each]).items():
                quantised.setdefault(f"{name}_{end}", torch.empty(experts, *tensor.shape, dtype=tensor.dtype))
                quantised[f"{name}_{end}"][each] = tensor
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])[codes]
        plain[name] = (values * 2.0 ** (scales.int() - 127).repeat_interleave(32, -1)).transpose(1, 2).contiguous()
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    rest = {name: tensor for name, tensor in plain.items() if f"{name}_blocks" not in quantised}
    save_file(rest | quantised, tmp_path / "model.safetensors")
    expected, kept = logits(load(tmp_path / "plain")), load(tmp_path, "float32", "auto")
    assert all(weight.kind.scale is Scale.E8M0 for weight in kept.layers[1].moe.experts.gate_up)
    torch.testing.assert_close(logits(as_plain(kept)), expected, atol=1e-3, rtol=0)
    assert (logits(kept) - expected).norm() < 0.05 * expected.norm()


GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 4,
    "vocab_size": 128,
    "sliding_window": 9,
}


def gpt_oss_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    tensors = {"model.embed_tokens.weight": random(128, 64), "lm_head.weight": random(128, 64)}
    tensors["model.norm.weight"] = 1 + random(64)
    for n in range(2):
        layer = f"model.layers.{n}"
        tensors |= {
            f"{layer}.{name}.weight": 1 + random(64) for name in ("input_layernorm", "post_attention_layernorm")
        }
        for name, (out, inputs) in {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}.items():
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = random(out, inputs)
            tensors[f"{layer}.self_attn.{name}_proj.bias"] = random(out)
        tensors |= {f"{layer}.self_attn.sinks": random(4), f"{layer}.mlp.router.bias": random(4)}
        tensors[f"{layer}.mlp.router.weight"] = random(4, 64)
        for name, (inputs, out) in {"gate_up_proj": (64, 192), "down_proj": (96, 64)}.items():
            tensors[f"{layer}.mlp.experts.{name}"] = random(4, inputs, out)
            tensors[f"{layer}.mlp.experts.{name}_bias"] = random(4, out)
    return tensors


def as_fp8(weight: Tensor, block: int | None) -> tuple[Tensors, Tensor]:
    """Returns a weight in float8 with a scale for the tensor or for each block, and what they mean."""
    if block is None:
        scale = weight.abs().amax() / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale": scale, "input_scale": torch.ones(())}, values.float() * scale
    scales = torch.stack(
        [row.abs().amax() / 448 for row in weight.unfold(0, block, block).unfold(1, block, block).flatten(0, 1)]
    )
    scales = scales.view(weight.shape[0] // block, -1)
    spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
    values = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": scales}, values.float() * spread


def write_fp8(directory: Path, block: int | None) -> Tensors:
    """Writes a tiny checkpoint in float8; returns what its tensors mean."""
    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    config |= {"weight_block_size": [block, block]} if block else {}
    write_tiny_checkpoint(directory, **SIZES, quantization_config=config)
    tensors = load_file(directory / "model.safetensors")
    plain = dict(tensors)
    for name in filter(is_quantised, list(tensors)):
        stored, plain[name] = as_fp8(tensors.pop(name), block)
        tensors |= {f"{name.removesuffix('.weight')}.{end}": tensor for end, tensor in stored.items()}
    save_file(tensors, directory / "model.safetensors")
    return plain


@pytest.mark.parametrize("block", [None, 32])
def test_fp8_is_decoded(tmp_path: Path, block: int | None) -> None:
    plain = write_fp8(tmp_path, block)
    write_tiny_checkpoint(tmp_path / "plain", **SIZES)
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    expected = logits(load(tmp_path / "plain"))
    torch.testing.assert_close(logits(load(tmp_path, "float32", "none")), expected, atol=1e-3, rtol=0)
    assert (logits(load(tmp_path, "auto", "int8")) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(("capability", "is_held"), [((9, 0), True), ((8, 9), True), ((8, 6), False)])
def test_a_gpu_that_computes_with_fp8_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_held: bool
) -> None:
    """The device is only named: its weights are made without it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    plain = write_fp8(tmp_path, None)
    with ExitStack() as stack:
        reader = Reader.of(Shards.open(tmp_path, stack))
        layer = names_for(ModelConfig.from_pretrained(tmp_path), reader.shards.files, tied=False).layers[0]
        takeover = Takeover(reader, torch.device("cuda"), zeros_on(torch.device("cpu")))
        output, experts = takeover.matrix(layer.o, 1), takeover.experts(layer)
    assert (experts is not None) == isinstance(output, StackedWeight) == is_held
    if isinstance(output, StackedWeight):
        assert output.format.kind == "fp8"
        torch.testing.assert_close(output.dense(), plain["model.layers.0.self_attn.o_proj.weight"])
