"""Tests whole checkpoints in each quantised format: the integers held are the file's, and the logits those they mean.

The reference is the same model in plain float32, made of what the integers mean by the formats' formulas.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.mapped import map_model
from octavo.model.loading.names import names_for
from octavo.model.loading.prepare import Order, write_model
from octavo.model.loading.reader import Reader
from octavo.model.loading.shards import Shards
from octavo.model.loading.takeover import Takeover
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import TileFile
from octavo.model.prepared.writer import locked
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.row_major_kinds import KindRowMajor
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import change, load
from tests.model.loading.quantised import packing
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 16,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "num_experts_per_tok": 4,  # all of them, so that no choice flips where activations are rounded
}
TOKENS = torch.randint(0, 128, (33,), generator=torch.Generator().manual_seed(3)).tolist()
Tensors = dict[str, Tensor]
# Packs codes, zeros and scales of a matrix; returns the tensors by the ends of their names.
Pack = Callable[[Tensor, Tensor, Tensor], Tensors]


def is_quantised(name: str) -> bool:
    return name.endswith("_proj.weight") or ".experts." in name


def write(directory: Path, pack: Pack, config: dict[str, Any], group: int = 32, bits: int = 4, **more: Any) -> Path:
    """Writes a checkpoint with random integers, and beside it, in `plain`, what they mean in float32."""
    settings = {"symmetric": False, "dtype": torch.float16, "act_order": False, **SIZES} | more
    symmetric, dtype, act_order = (settings.pop(name) for name in ("symmetric", "dtype", "act_order"))
    write_tiny_checkpoint(directory, **settings, quantization_config=config)
    write_tiny_checkpoint(directory / "plain", **settings)
    tensors, plain = load_file(directory / "model.safetensors"), load_file(directory / "plain" / "model.safetensors")
    integers: Tensors = {}
    generator = torch.Generator().manual_seed(7)
    for name in filter(is_quantised, list(tensors)):
        out, inputs = tensors.pop(name).shape
        groups = inputs // group if group > 0 else 1
        codes = torch.randint(0, 2**bits, (out, inputs), generator=generator)
        middle = 2 ** (bits - 1)
        zeros = torch.full((out, groups), middle) if symmetric else torch.randint(1, 2**bits, (out, groups))
        spread = 2.0**bits * inputs**0.5 / 3
        scales = ((0.5 + torch.rand(out, groups, generator=generator)) / spread).to(dtype)
        index = torch.arange(inputs) // (inputs // groups)
        if act_order:
            seed = name.rpartition(".experts.")[2].split(".")[0] if ".experts." in name else name.split(".")[2]
            shuffled = torch.Generator().manual_seed(hash_of(seed, inputs))
            index = index[torch.randperm(inputs, generator=shuffled)]
        packed = pack(codes, zeros, scales)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{end}": tensor for end, tensor in packed.items()}
        if act_order:
            tensors[f"{module}.g_idx"] = index.int()
        integers |= {f"{module}.codes": codes, f"{module}.zeros": zeros, f"{module}.scales": scales}
        plain[name] = (codes - zeros[:, index]).float() * scales[:, index].float()
    save_file({name: each.contiguous() for name, each in tensors.items()}, directory / "model.safetensors")
    save_file(plain, directory / "plain" / "model.safetensors")
    save_file(integers, directory / "integers")
    return directory


def hash_of(seed: str, inputs: int) -> int:
    return sum(map(ord, seed)) * 1000 + inputs


def gptq(bits: int = 4, version: int = 1) -> Pack:
    return lambda codes, zeros, scales: packing.gptq(codes, zeros, scales, bits, version)


def packed(bits: int = 4, symmetric: bool = False) -> Pack:
    return lambda codes, zeros, scales: packing.pack_quantized(codes, None if symmetric else zeros, scales, bits)


def int_quantized(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensors:
    return {"weight": (codes - 128).to(torch.int8), "weight_scale": scales}


def compressed(format: str, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group}
    weights |= {"strategy": "group" if group > 0 else "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    ignore = ["lm_head", "re:.*block_sparse_moe.gate"]
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ignore}


def as_gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False} | more


def as_awq(group: int) -> dict[str, Any]:
    fields = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True}
    return fields | {"modules_to_not_convert": ["gate"]}


CASES: dict[str, tuple[Pack, dict[str, Any], dict[str, Any]]] = {
    "gptq": (gptq(), as_gptq(4, 32), {}),
    "gptq, 8 bits": (gptq(8), as_gptq(8, 64), {"bits": 8, "group": 64}),
    "gptq v2": (gptq(version=2), as_gptq(4, 32, checkpoint_format="gptq_v2"), {}),
    "gptq, symmetric": (gptq(), as_gptq(4, 64, sym=True), {"symmetric": True, "group": 64}),
    "gptq, a scale for each output": (gptq(), as_gptq(4, -1), {"group": -1}),
    "gptq, act order": (gptq(), as_gptq(4, 32, desc_act=True), {"act_order": True}),
    "awq": (packing.awq, as_awq(32), {}),
    "awq, dense": (packing.awq, as_awq(32), {"model_type": "mistral"}),
    "pack-quantized": (packed(), compressed("pack-quantized", 4, 32, False), {}),
    "pack-quantized, symmetric": (
        packed(symmetric=True),
        compressed("pack-quantized", 4, 32, True),
        {"symmetric": True, "dtype": torch.bfloat16},
    ),
    "pack-quantized, 8 bits, channel": (
        packed(8, symmetric=True),
        compressed("pack-quantized", 8, -1, True),
        {"symmetric": True, "bits": 8, "group": -1, "dtype": torch.float32},
    ),
    "int-quantized": (
        int_quantized,
        compressed("int-quantized", 8, -1, True),
        {"symmetric": True, "bits": 8, "group": -1},
    ),
}


def as_plain(model: Decoder) -> Decoder:
    """Returns the model with the weights that it holds as plain tensors, and without kernels."""

    def plain(weight: Any) -> Any:
        return weight.dense() if isinstance(weight, TiledWeight) else weight

    layers = []
    for layer in model.layers:
        experts = layer.moe.experts
        held = replace(experts, gate_up=tuple(map(plain, experts.gate_up)), down=tuple(map(plain, experts.down)))
        attention = replace(layer.attention, qkv=plain(layer.attention.qkv), o=plain(layer.attention.o))
        layers.append(replace(layer, attention=attention, moe=replace(layer.moe, experts=held)))
    return replace(model, layers=tuple(layers), head=plain(model.head), fused=None)


def logits(model: Decoder) -> Tensor:
    return Pages(model, 1, len(TOKENS)).prompt(TOKENS)


@pytest.mark.parametrize(("pack", "config", "more"), CASES.values(), ids=CASES)
def test_the_logits_are_those_of_what_the_integers_mean(
    tmp_path: Path, pack: Pack, config: dict[str, Any], more: dict[str, Any]
) -> None:
    write(tmp_path, pack, config, **more)
    expected = logits(load(tmp_path / "plain"))
    kept = load(tmp_path, "float32", "auto")
    experts = kept.layers[0].moe.experts
    assert all(isinstance(weight, TiledWeight) for weight in (*experts.gate_up, *experts.down))
    assert isinstance(kept.layers[0].attention.qkv, TiledWeight)
    torch.testing.assert_close(logits(as_plain(kept)), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(logits(load(tmp_path, "float32", "none")), expected, atol=1e-3, rtol=0)
    # The fast path rounds activations to 8 bits.
    assert (logits(kept) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", [name for name in CASES if "act order" not in name and "dense" not in name])
def test_the_integers_and_scales_that_are_held_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    pack, config, more = CASES[name]
    integers = load_file(write(tmp_path, pack, config, **more) / "integers")
    layer = load(tmp_path, "float32", "auto").layers[1]
    matrices = {"self_attn.o_proj": layer.attention.o}
    matrices |= {f"block_sparse_moe.experts.{n}.w2": weight for n, weight in enumerate(layer.moe.experts.down)}
    for module, weight in matrices.items():
        assert isinstance(weight, TiledWeight)
        parts, prefix = weight.parts(), f"model.layers.1.{module}"
        raised = 128 - 2 ** (more.get("bits", 4) - 1) if weight.kind.values is None and more.get("bits", 4) == 4 else 0
        codes = integers[f"{prefix}.codes"]
        assert torch.equal(parts.codes[:, : codes.shape[1]].int(), codes.int() + raised)
        scales = integers[f"{prefix}.scales"]
        held = parts.factors[:, None] if parts.scales is None else parts.scales[:, : scales.shape[1]]
        assert torch.equal(held.float(), scales.float())
        if not more.get("symmetric"):
            assert parts.offsets is not None
            zeros = integers[f"{prefix}.zeros"]
            assert torch.equal(parts.offsets[:, : zeros.shape[1]].float(), zeros.float())


@pytest.mark.parametrize("name", ["gptq", "gptq, act order", "awq", "pack-quantized, symmetric"])
def test_a_tile_file_of_a_quantised_checkpoint_is_the_same_model(tmp_path: Path, name: str) -> None:
    pack, config, more = CASES[name]
    write(tmp_path, pack, config, **more)
    loaded = load(tmp_path, "float32", "auto")
    assert torch.equal(logits(mapped(tmp_path, loaded)), logits(loaded))


def mapped(directory: Path, model: Decoder) -> Decoder:
    """Writes the tile file of a model, and returns what is mapped from it."""
    config = ModelConfig.from_pretrained(directory)
    source = Source.of(directory)
    assert source is not None
    target = directory / "octavo.tiles"
    with locked(target, wait=None):
        write_model(Order(target, "kept-float32", source), model)
    with TileFile.open(target) as file:
        return map_model(file, config, select_backend(config, model.device), model.precision)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [("int8", "--quantization int8 would round its weights again"), ("int4", "leave the flag out")],
)
def test_quantised_weights_are_never_rounded_again_in_silence(tmp_path: Path, quantization: str, words: str) -> None:
    write(tmp_path, *CASES["gptq"][:2])
    with pytest.raises(ModelError) as caught:
        load(tmp_path, "auto", quantization)
    assert words in str(caught.value)


def drop_scales(tensors: Tensors) -> None:
    del tensors["model.layers.0.self_attn.k_proj.scales"]


def reshape_zeros(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.k_proj.qzeros"] = torch.zeros(3, 4, dtype=torch.int32)


def retype_words(tensors: Tensors) -> None:
    name = "model.layers.0.self_attn.k_proj.qweight"
    tensors[name] = tensors[name].float()


def put_bias(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.k_proj.bias"] = torch.ones(32)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop_scales, "1 missing: model.layers.0.self_attn.k_proj.scales"),
        (reshape_zeros, "model.layers.0.self_attn.k_proj.qzeros ([3, 4], expected [2, 4])"),
        (retype_words, "model.layers.0.self_attn.k_proj.qweight (F32, expected I32)"),
        (put_bias, "model.layers.0.self_attn.k_proj.bias in"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, edit: Callable[[Tensors], None], words: str) -> None:
    change(write(tmp_path, *CASES["gptq"][:2]), edit)
    with pytest.raises(ModelError) as caught:
        load(tmp_path, "float32", "auto")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CASES if "dense" not in name])
def test_a_gpu_holds_the_same_weights_row_by_row(tmp_path: Path, name: str) -> None:
    """The device is only named: its weights are made without it."""
    pack, config, more = CASES[name]
    write(tmp_path, pack, config, **more)
    with ExitStack() as stack:
        reader = Reader.of(Shards.open(tmp_path, stack))
        model = ModelConfig.from_pretrained(tmp_path)
        layer = names_for(model, reader.shards.files, tied=False).layers[1]
        on_cpu = Takeover(reader, torch.device("cpu"), zeros_on(torch.device("cpu")))
        on_gpu = replace(on_cpu, device=torch.device("cuda"))
        matrices = [(on_gpu.matrix(layer.qkv, 1), on_cpu.matrix(layer.qkv, 1))]
        for rows, tiles in zip(on_gpu.experts(layer) or (), on_cpu.experts(layer) or (), strict=True):
            matrices += zip(rows, tiles, strict=True)
    assert len(matrices) == 9
    for row_major, tiled in matrices:
        assert isinstance(row_major, KindRowMajor) and isinstance(tiled, TiledWeight)
        torch.testing.assert_close(row_major.dense(), tiled.dense(), atol=1e-6, rtol=1e-6)
        inputs = row_major.shape[1]
        assert torch.equal(row_major.parts().codes, tiled.parts().codes[:, :inputs])


def test_what_is_quantised_in_part_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack, config, more = CASES["gptq"]
    write(tmp_path, pack, config | {"dynamic": {"-:.*experts.0.w2": {}}}, **more)
    name = "model.layers.0.block_sparse_moe.experts.0.w2"
    for layer in range(2):
        module = name.replace("layers.0", f"layers.{layer}")
        plain = load_file(tmp_path / "plain" / "model.safetensors")[f"{module}.weight"]

        def put(tensors: Tensors, module: str = module, plain: Tensor = plain) -> None:
            for end in ("qweight", "qzeros", "scales"):
                del tensors[f"{module}.{end}"]
            tensors[f"{module}.weight"] = plain

        change(tmp_path, put)
    kept = load(tmp_path, "float32", "auto")
    assert "quantised in part" in caplog.text
    torch.testing.assert_close(logits(as_plain(kept)), logits(load(tmp_path / "plain")), atol=1e-3, rtol=0)


def test_a_bias_that_the_model_has_must_be_there(tmp_path: Path) -> None:
    """GPTQ allows a bias of zeros beside each matrix; Qwen2 has one of its own."""
    write(tmp_path, *CASES["gptq"][:2], model_type="qwen2")
    with pytest.raises(ModelError, match="6 missing: model.layers.0.self_attn.k_proj.bias"):
        load(tmp_path, "float32", "auto")
