"""Tests that each fault of a checkpoint's files or tensors gives one sentence that names the file or tensor."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.model.config import ModelError
from octavo.model.loading.shards import Shards
from tests.model.checkpoints import Tensors, change, load, shard
from tests.model.marks import needs_fbgemm
from tests.tiny import write_tiny_checkpoint


def drop_some(tensors: Tensors) -> None:
    for name in list(tensors):
        if name.startswith("model.layers.1.block_sparse_moe.experts.2"):
            del tensors[name]


def reshape_router(tensors: Tensors) -> None:
    tensors["model.layers.0.block_sparse_moe.gate.weight"] = torch.zeros(5, 32)


def add_bias(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)


def use_doubles(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()


def add_nan(tensors: Tensors) -> None:
    tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"][4, 5] = float("nan")


def add_infinity(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][4, 5] = float("-inf")


def drop_head(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_some, "3 missing: model.layers.1.block_sparse_moe.experts.2.w1.weight, "),
        (drop_head, "1 missing: lm_head.weight"),
        (add_bias, "1 unexpected: model.layers.0.self_attn.q_proj.bias"),
        (reshape_router, "model.layers.0.block_sparse_moe.gate.weight ([5, 32], expected [4, 32])"),
        (use_doubles, "model.norm.weight (F64, expected F16 or BF16 or F32)"),
        (add_nan, "model.layers.1.block_sparse_moe.experts.3.w3.weight holds infinities or NaNs"),
        (add_infinity, "model.embed_tokens.weight holds infinities or NaNs"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=needs_fbgemm)])
def test_a_bad_tensor_is_named(tmp_path: Path, edit: Callable[[Tensors], None], message: str, dtype: str) -> None:
    change(write_tiny_checkpoint(tmp_path), edit)
    with pytest.raises(ModelError) as caught:
        load(tmp_path, dtype)
    assert message in str(caught.value)


def test_a_type_of_unknown_size_is_named(tmp_path: Path) -> None:
    """safetensors learns of new types sooner than Octavo."""
    write_tiny_checkpoint(tmp_path)
    change(tmp_path, lambda tensors: tensors.update(strange=torch.zeros(3, dtype=torch.complex64)))
    with ExitStack() as stack:
        shards = Shards.open(tmp_path, stack)
        assert shards.stored_bytes("model.norm.weight") == 128
        with pytest.raises(ModelError, match=r"The tensor strange in .* is of the type C64, which is unknown"):
            shards.stored_bytes("strange")


def test_many_bad_tensors_are_counted(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "intermediate_size": 47}))
    with pytest.raises(ModelError, match=r"19 missing: model\.layers\.2\..* and 14 more; 24 of another shape"):
        load(tmp_path)


def corrupt(path: Path, position: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(value)


def truncate(directory: Path) -> None:
    with (directory / "model-00001-of-00003.safetensors").open("r+b") as file:
        file.truncate(5000)


def remove_shard(directory: Path) -> None:
    (directory / "model-00002-of-00003.safetensors").unlink()


def break_header(directory: Path) -> None:
    corrupt(directory / "model-00000-of-00003.safetensors", 8, b"!!!!")


def empty_shard(directory: Path) -> None:
    (directory / "model-00000-of-00003.safetensors").write_bytes(b"")


def break_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text("{")


def index_outside(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "../other.safetensors"}}'
    )


def empty_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')


def make_index_a_directory(directory: Path) -> None:
    remove_index(directory)
    (directory / "model.safetensors.index.json").mkdir()


def index_without_a_file(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": null}}')


def remove_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").unlink()


def repeat_tensors(directory: Path) -> None:
    first = (directory / "model-00000-of-00003.safetensors").read_bytes()
    (directory / "model-00001-of-00003.safetensors").write_bytes(first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model-00001-of-00003.safetensors is damaged or incomplete"),
        (break_header, "model-00000-of-00003.safetensors is damaged or incomplete"),
        (empty_shard, "model-00000-of-00003.safetensors is damaged or incomplete"),
        (remove_shard, "1 missing files: model-00002-of-00003.safetensors"),
        (break_index, "model.safetensors.index.json cannot be read"),
        (index_outside, "must name files beside it"),
        (remove_index, "has neither model.safetensors nor model.safetensors.index.json"),
        (repeat_tensors, "14 missing in the file that the index names: model."),
        (empty_index, "has no weight_map"),
        (make_index_a_directory, "model.safetensors.index.json is not a file"),
        (index_without_a_file, "must name files beside it"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    shard(write_tiny_checkpoint(tmp_path))
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_index_decides_between_copies(tmp_path: Path) -> None:
    """A fine-tune may come as a shard that lies over those of its base model, which keep their older tensors."""
    write_tiny_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors | {"lm_head.weight": torch.zeros_like(tensors["lm_head.weight"])}, tmp_path / "base.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, tmp_path / "a-overlay.safetensors")
    save_file({"lm_head.weight": torch.full((1,), torch.nan)}, tmp_path / "nobody-names-this.safetensors")
    weight_map = dict.fromkeys(tensors, "base.safetensors") | {"lm_head.weight": "a-overlay.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    head = load(tmp_path).head
    assert isinstance(head, torch.Tensor)
    assert torch.equal(head, tensors["lm_head.weight"])
    del weight_map["lm_head.weight"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
        load(tmp_path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="only safetensors is ever loaded"):
        load(tmp_path)
