"""Tests checkpoints whose matrices are quantised in different ways: tied heads, routers, groups that do not divide."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.model.decoder import Decoder
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import load, shard
from tests.model.loading.test_takeover import (
    SIZES,
    Pack,
    Tensors,
    as_gptq,
    as_plain,
    gptq,
    is_quantised,
    logits,
    mapped,
    packed,
)
from tests.tiny import write_tiny_checkpoint


@dataclass(frozen=True)
class Grid:
    """A Grid says how one matrix is quantised."""

    pack: Pack
    bits: int = 4
    group: int = 32  # -1: a channel
    order: int | None = None  # the seed of an act order


Choose = Callable[[str], Grid | None]  # from a tensor's name; None: it stays as it is


def quantised(plain: torch.Tensor, grid: Grid, seed: int) -> tuple[Tensors, torch.Tensor]:
    """Returns the tensors of random integers in a grid, by the ends of their names, and what they mean."""
    out, inputs = plain.shape
    generator = torch.Generator().manual_seed(seed)
    group = inputs if grid.group < 0 else grid.group
    groups = math.ceil(inputs / group)
    codes = torch.randint(0, 2**grid.bits, (out, inputs), generator=generator)
    zeros = torch.randint(1, 2**grid.bits, (out, groups), generator=generator)
    scales = (0.5 + torch.rand(out, groups, generator=generator)) * 3 / (2.0**grid.bits * inputs**0.5)
    index = torch.arange(inputs) // group
    if grid.order is not None:
        index = index[torch.randperm(inputs, generator=torch.Generator().manual_seed(grid.order))]
    tensors = grid.pack(codes, zeros, scales.half())
    if grid.order is not None:
        tensors["g_idx"] = index.int()
    return tensors, (codes - zeros[:, index]).float() * scales.half()[:, index].float()


def write(directory: Path, config: dict[str, Any], choose: Choose, **settings: Any) -> Path:
    """Writes a checkpoint of random integers, and beside it, in `plain`, what they mean in float32."""
    settings = SIZES | settings
    write_tiny_checkpoint(directory, **settings, quantization_config=config)
    write_tiny_checkpoint(directory / "plain", **settings)
    tensors = load_file(directory / "model.safetensors")
    plain = dict(tensors)
    for seed, name in enumerate(sorted(tensors)):
        grid = choose(name)
        if grid is not None:
            made, plain[name] = quantised(tensors.pop(name), grid, seed)
            tensors |= {f"{name.removesuffix('.weight')}.{end}": each.contiguous() for end, each in made.items()}
    save_file(tensors, directory / "model.safetensors")
    save_file(plain, directory / "plain" / "model.safetensors")
    return directory


def check(directory: Path, kept: bool = True) -> Decoder:
    """Checks that a checkpoint computes what its integers mean, loaded, decoded and mapped; `kept` says if tiles do."""
    expected = logits(load(directory / "plain"))
    model = load(directory, "float32", "auto")
    layer = model.layers[1]
    held = (layer.attention.qkv, layer.attention.o, *layer.moe.experts.gate_up, *layer.moe.experts.down)
    assert all(isinstance(weight, TiledWeight) for weight in held) == kept
    torch.testing.assert_close(logits(as_plain(model)), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(logits(load(directory, "float32", "none")), expected, atol=1e-3, rtol=0)
    assert (logits(model) - expected).norm() < 0.05 * expected.norm()  # The fast path rounds activations to 8 bits.
    assert torch.equal(logits(mapped(directory, model)), logits(model))
    return model


def everywhere(grid: Grid, *also: str) -> Choose:
    return lambda name: grid if is_quantised(name) or name in also else None


FOUR = Grid(gptq())


def test_a_quantised_head_is_used_where_the_config_says_tied(tmp_path: Path) -> None:
    """transformers does so, too. A tiny checkpoint that is tied has no head, so the config is changed afterwards."""
    config = as_gptq(4, 32, lm_head=True)
    write(tmp_path, config, everywhere(FOUR, "lm_head.weight"))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert isinstance(check(tmp_path).head, TiledWeight)


def test_a_quantised_router_is_decoded(tmp_path: Path) -> None:
    routers = tuple(f"model.layers.{n}.block_sparse_moe.gate.weight" for n in range(2))
    write(tmp_path, as_gptq(4, 32), everywhere(FOUR, *routers), num_local_experts=8, num_experts_per_tok=8)
    check(tmp_path)


@pytest.mark.parametrize(("hidden", "intermediate", "group"), [(96, 48, 64), (64, 48, 32), (96, 160, 128)])
def test_the_last_group_may_be_shorter(tmp_path: Path, hidden: int, intermediate: int, group: int) -> None:
    grid = Grid(gptq(), group=group)
    write(tmp_path, as_gptq(4, group), everywhere(grid), hidden_size=hidden, intermediate_size=intermediate)
    check(tmp_path)


@pytest.mark.parametrize("group", [256, 4096, 2**31])
def test_a_group_may_be_longer_than_a_row(tmp_path: Path, group: int) -> None:
    write(tmp_path, as_gptq(4, group), everywhere(Grid(gptq(), group=group)))
    check(tmp_path)


def test_schemes_may_differ_from_module_to_module(tmp_path: Path) -> None:
    """Experts of one layer are multiplied with the same activations, so all are padded to one length."""
    grids = {
        "k_proj": Grid(gptq(8), 8, 32),
        "o_proj": Grid(gptq(8), 8, -1),
        "experts.1.w": Grid(gptq(), group=96),
        "experts.2.w": Grid(gptq(8), 8, 64),
        "experts.3.w": Grid(gptq(), group=-1),
    }
    dynamic = {f"+:.*{key}": {"bits": grid.bits, "group_size": grid.group} for key, grid in grids.items()}

    def choose(name: str) -> Grid | None:
        own = next((grid for key, grid in grids.items() if key in name), FOUR)
        return own if is_quantised(name) else None

    write(tmp_path, as_gptq(4, 32, dynamic=dynamic), choose, hidden_size=96, intermediate_size=160)
    check(tmp_path)


def test_groups_of_modules_with_formats_of_their_own(tmp_path: Path) -> None:
    def group(target: str, bits: int, size: int, strategy: str) -> dict[str, Any]:
        weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": strategy, "group_size": size}
        return {"targets": [target], "weights": weights}

    groups = {"a": group(r"re:.*self_attn\..*_proj$", 8, -1, "channel"), "b": group("Linear", 4, 32, "group")}
    groups["c"] = group("Embedding", 8, -1, "channel")
    wide, table = Grid(packed(8), 8, -1), "model.embed_tokens.weight"
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    config |= {"ignore": ["lm_head", "re:.*block_sparse_moe.gate"]}

    def choose(name: str) -> Grid | None:
        return wide if "self_attn" in name or name == table else Grid(packed()) if is_quantised(name) else None

    write(tmp_path, config, choose)
    check(tmp_path)


@pytest.mark.parametrize("act", [None, 5])
def test_dense_models_in_shards(tmp_path: Path, act: int | None) -> None:
    grid = Grid(gptq(), order=act)
    config = as_gptq(4, 32, desc_act=act is not None)
    shard(write(tmp_path, config, everywhere(grid), model_type="mistral"))
    check(tmp_path)
