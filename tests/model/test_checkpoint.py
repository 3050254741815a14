"""Loading: both layouts, shards, every precision, the memory it takes, and every way a checkpoint can be bad."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import load_model
from model.config import ModelConfig, ModelError
from model.mixtral import Mixtral
from model.quantization import Fp16Weight, fp16_works
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

CPU = torch.device("cpu")
PROMPT = list(range(5, 25))
Tensors = dict[str, Tensor]

needs_fbgemm = pytest.mark.skipif(not fp16_works(), reason="needs FBGEMM on x86")


def load(directory: Path, dtype: str = "float32") -> Mixtral:
    return load_model(directory, ModelConfig.from_pretrained(directory), CPU, dtype, lambda done, total: None)


def logits(directory: Path, dtype: str = "float32") -> Tensor:
    return Pages(load(directory, dtype), sequences=1, length=len(PROMPT)).prompt(PROMPT)


def change(directory: Path, edit: Callable[[Tensors], None]) -> None:
    """Rewrites the weights of a single-file checkpoint."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def fuse(tensors: Tensors, layers: int = 2, experts: int = 4) -> None:
    """Turns the released layout into transformers 5's own."""
    for n in range(layers):
        old, new = f"model.layers.{n}.block_sparse_moe", f"model.layers.{n}.mlp"

        def take(name: str, prefix: str = old) -> list[Tensor]:
            return [tensors.pop(f"{prefix}.experts.{expert}.{name}.weight") for expert in range(experts)]

        gate, down, up = take("w1"), take("w2"), take("w3")
        tensors[f"{new}.experts.gate_up_proj"] = torch.cat((torch.stack(gate), torch.stack(up)), dim=1)
        tensors[f"{new}.experts.down_proj"] = torch.stack(down)
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")


def shard(directory: Path, pieces: int = 3) -> None:
    """Splits model.safetensors over several files with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{n % pieces:05}-of-{pieces:05}.safetensors" for n, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=needs_fbgemm)])
def test_both_layouts_and_shards_are_the_same_model(tmp_path: Path, dtype: str) -> None:
    write_tiny_checkpoint(tmp_path)
    expected = logits(tmp_path, dtype)
    change(tmp_path, fuse)
    assert torch.equal(logits(tmp_path, dtype), expected)
    shard(tmp_path)
    assert torch.equal(logits(tmp_path, dtype), expected)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=needs_fbgemm)])
def test_any_stored_type_in_any_precision(tmp_path: Path, stored: str, dtype: str) -> None:
    write_tiny_checkpoint(tmp_path, torch_dtype=stored)
    model = load(tmp_path, dtype)
    exact = logits(tmp_path, "float32")
    tolerance = {"float32": 0, "float16": 2e-2, "bfloat16": 0.5}[dtype]
    assert (logits(tmp_path, dtype) - exact).abs().max() <= tolerance
    assert model.activation_dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert {type(matrix) for matrix in model.matrices()} == {Fp16Weight if dtype == "float16" else Tensor}
    assert model.embedding.table.dtype == (
        torch.float32 if dtype == "float32" else torch.float16 if stored == "float32" and dtype == "float16"
        else getattr(torch, stored if dtype == "float16" else dtype)
    )  # fmt: skip


def test_what_a_model_says_of_itself(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path, vocab_size=8000, tie_word_embeddings=True))
    parameters = model.config.num_parameters()
    assert model.weight_bytes == 4 * parameters
    assert model.describe() == "0M parameters, 0M active, fp32 weights (0.0 GB), fp32 activations"
    assert (model.device, model.config.vocab_size) == (CPU, 8000)


def test_a_head_that_is_stored_is_used_even_where_the_config_ties_it(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    expected = logits(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert torch.equal(logits(tmp_path), expected)


def test_the_model_outlives_its_files(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    model = load(tmp_path)
    expected = Pages(model, sequences=1, length=len(PROMPT)).prompt(PROMPT)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(Pages(model, sequences=1, length=len(PROMPT)).prompt(PROMPT), expected)


def test_progress_grows_to_the_bytes_of_all_tensors(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    seen: list[tuple[int, int]] = []
    model = load_model(
        tmp_path, ModelConfig.from_pretrained(tmp_path), CPU, "float32", lambda done, total: seen.append((done, total))
    )
    assert {total for _, total in seen} == {model.weight_bytes}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == model.weight_bytes


@needs_fbgemm
def test_matrices_beyond_float16_stay_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_checkpoint(tmp_path)
    down = "model.layers.0.block_sparse_moe.experts.1.w2.weight"

    def enlarge(tensors: Tensors) -> None:
        tensors[down] *= 1e6
        tensors["model.embed_tokens.weight"][0] = 1e6

    change(tmp_path, enlarge)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, "float16")
    kept = [matrix for matrix in model.matrices() if isinstance(matrix, Tensor)]
    assert len(kept) == 1
    assert torch.equal(kept[0], load_file(tmp_path / "model.safetensors")[down])
    assert model.embedding.table.dtype == torch.float32
    assert caplog.messages == ["1 matrices are beyond the range of float16 and stay in float32"]
    scale = logits(tmp_path, "float32").abs().max()
    assert (logits(tmp_path, "float16") - logits(tmp_path, "float32")).abs().max() < 1e-2 * scale


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from model.checkpoint import load_model
from model.config import ModelConfig

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def load(directory):
    directory = Path(directory)
    config = ModelConfig.from_pretrained(directory)
    return load_model(directory, config, torch.device("cpu"), sys.argv[3], lambda done, total: None)

torch.set_num_threads(2)
load(sys.argv[1])  # what torch sets up on first use is not the checkpoint's
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
model = load(sys.argv[2])
done.set()
watcher.join()
print(peak - before, model.weight_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=needs_fbgemm)])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_loading_takes_hardly_more_memory_than_the_weights(tmp_path: Path, dtype: str, stored: str) -> None:
    large = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_local_experts": 8}
    tiny = write_tiny_checkpoint(tmp_path / "tiny", torch_dtype=stored)
    model = write_tiny_checkpoint(tmp_path / "large", torch_dtype=stored, vocab_size=4096, **large)
    command = [sys.executable, "-c", MEASURE, str(tiny), str(model), dtype]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, held = map(int, output.split())
    assert held > 30e6
    assert 0.8 * held < peak < 1.15 * held, f"peak {peak / 1e6:.1f} MB for {held / 1e6:.1f} MB of weights"


def corrupt(path: Path, position: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(value)


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
        (use_doubles, "model.norm.weight (F64)"),
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


def test_many_bad_tensors_are_counted(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "intermediate_size": 47}))
    with pytest.raises(ModelError, match=r"19 missing: model\.layers\.2\..* and 14 more; 24 of another shape"):
        load(tmp_path)


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
        (repeat_tensors, "is in two files"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    shard(write_tiny_checkpoint(tmp_path))
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="only safetensors is ever loaded"):
        load(tmp_path)
