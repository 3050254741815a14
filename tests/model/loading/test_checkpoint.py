"""Tests loading: both namings of experts, shards, every precision, progress, and the memory it takes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.loading.names import DERIVED
from octavo.model.weights.forms import Weight
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import EVEN4, INT4, INT8, INT8_FINE, Kind
from octavo.model.weights.precision import Precision
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import CPU, Tensors, change, load, shard, stack_experts
from tests.model.marks import needs_fbgemm
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[3]
FP32 = Precision.plain(torch.float32)
PROMPT = list(range(5, 25))


def logits(directory: Path, dtype: str = "float32", quantization: str = "none") -> Tensor:
    return Pages(load(directory, dtype, quantization), sequences=1, length=len(PROMPT)).prompt(PROMPT)


@pytest.mark.parametrize(
    "asked", [("float32",), pytest.param(("float16",), marks=needs_fbgemm), ("auto", "int8"), ("auto", "int4")]
)
def test_both_namings_and_shards_are_the_same_model(tmp_path: Path, asked: tuple[str, ...]) -> None:
    write_tiny_checkpoint(tmp_path)
    expected = logits(tmp_path, *asked)
    change(tmp_path, stack_experts)
    assert torch.equal(logits(tmp_path, *asked), expected)
    shard(tmp_path)
    assert torch.equal(logits(tmp_path, *asked), expected)


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
    # The table beside packed matrices keeps the 16 bits it is stored in.
    beside_packed = "float16" if stored == "float32" else stored
    assert model.embedding.table.dtype == getattr(torch, beside_packed if dtype == "float16" else dtype)


def kind_of(weight: Weight) -> Kind:
    assert isinstance(weight, TiledWeight)
    return weight.kind


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.05), ("int4", 0.5)])
def test_any_stored_type_quantised(tmp_path: Path, stored: str, quantization: str, tolerance: float) -> None:
    write_tiny_checkpoint(tmp_path, torch_dtype=stored, tie_word_embeddings=True)
    model = load(tmp_path, "auto", quantization)
    exact = logits(tmp_path, "float32")
    # The median: where two experts were close, rounding may choose the other one.
    assert (logits(tmp_path, "auto", quantization) - exact).abs().median() < tolerance * exact.std()
    assert model.activation_dtype == torch.float32
    experts = INT8 if quantization == "int8" else INT4
    assert {kind_of(layer.attention.qkv) for layer in model.layers} | {kind_of(model.head)} == {INT8_FINE}
    for n, layer in enumerate(model.layers):
        down = model.precision.down(n, len(model.layers))
        assert {kind_of(matrix) for matrix in layer.moe.experts.down} == {down}
        assert {kind_of(matrix) for matrix in layer.moe.experts.gate_up} == {experts}
        assert all(matrix.layout.interleaved for matrix in layer.moe.experts.gate_up)
        assert not any(matrix.layout.interleaved for matrix in layer.moe.experts.down)
        assert layer.moe.router is not None and layer.moe.router.weight.dtype == torch.float32
    assert model.embedding.table.dtype == (torch.float16 if stored == "float32" else getattr(torch, stored))


def test_what_a_model_says_of_itself(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path, vocab_size=8000, tie_word_embeddings=True))
    parameters = model.config.num_parameters()
    assert model.weight_bytes == 4 * parameters
    assert model.describe() == "0M parameters, 0M active, fp32 weights (0.0 GB), fp32 activations"
    assert (model.device, model.config.vocab_size) == (CPU, 8000)
    dense = load(write_tiny_checkpoint(tmp_path / "dense", model_type="llama"))
    assert dense.weight_bytes == 4 * dense.config.num_parameters()
    assert dense.describe() == "0M parameters, dense, fp32 weights (0.0 GB), fp32 activations"


def test_what_config_json_implies_may_lie_in_a_checkpoint_and_is_not_read(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, model_type="llama")
    expected = logits(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({f"model.layers.0.self_attn{DERIVED}": torch.ones(4)}))
    assert torch.equal(logits(tmp_path), expected)


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
    config = ModelConfig.from_pretrained(tmp_path)
    model = load_model(
        tmp_path, config, select_backend(config, CPU), FP32, lambda done, total: seen.append((done, total))
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
    assert caplog.messages == ["1 matrices are beyond the range of fp16 and stay plain tensors"]
    scale = logits(tmp_path, "float32").abs().max()
    assert (logits(tmp_path, "float16") - logits(tmp_path, "float32")).abs().max() < 1e-2 * scale


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("factor", [1e-20, 1e6])
def test_matrices_of_any_magnitude_are_quantised(
    tmp_path: Path, quantization: str, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_checkpoint(tmp_path)
    down = "model.layers.0.block_sparse_moe.experts.1.w2.weight"

    def enlarge(tensors: Tensors) -> None:
        tensors[down] *= factor

    change(tmp_path, enlarge)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, "auto", quantization)
    assert not caplog.messages and not any(isinstance(matrix, Tensor) for matrix in model.matrices())
    exact, rounded = logits(tmp_path), logits(tmp_path, "auto", quantization)
    assert (rounded - exact).abs().median() < 0.5 * exact.std()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_matrices_beyond_every_sum_stay_in_float32(
    tmp_path: Path, quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_checkpoint(tmp_path)
    down = "model.layers.0.block_sparse_moe.experts.1.w2.weight"

    def enlarge(tensors: Tensors) -> None:
        tensors[down] *= 1e35

    change(tmp_path, enlarge)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, "auto", quantization)
    kept = [matrix for matrix in model.matrices() if isinstance(matrix, Tensor)]
    assert len(kept) == len(caplog.messages) == 1
    assert torch.equal(kept[0], load_file(tmp_path / "model.safetensors")[down])


def test_int4_keeps_the_even_steps_of_weights_that_were_in_4_bits_before(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    down = "model.layers.0.block_sparse_moe.experts.1.w2.weight"

    def round_to_steps(tensors: Tensors) -> None:
        out, inputs = tensors[down].shape
        tensors[down] = TiledWeight.pack(EVEN4, tensors[down]).dense().reshape(out, inputs).contiguous()

    change(tmp_path, round_to_steps)
    held = load(tmp_path, "auto", "int4").layers[0].moe.experts.down
    assert [kind_of(weight) for weight in held[:3]] == [INT4, EVEN4, INT4]
    stored = load_file(tmp_path / "model.safetensors")[down]
    weight = held[1]
    assert isinstance(weight, TiledWeight)
    # The last group of a row is padded with zeros, which were on no step.
    kept, expected = weight.dense()[:, :32], stored[:, :32]
    torch.testing.assert_close(kept, expected, rtol=2e-3, atol=2e-3 * stored.abs().max().item())


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.config import ModelConfig
from octavo.model.weights.precision import Wanted, choose_precision

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def load(directory):
    directory = Path(directory)
    config = ModelConfig.from_pretrained(directory)
    cpu = torch.device("cpu")
    precision = choose_precision(Wanted(sys.argv[3], sys.argv[4]), config.dtype, cpu, kernels=False)
    return load_model(directory, config, select_backend(config, cpu), precision)

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
peak = max(peak, anonymous())  # a busy machine may not have let it watch
print(peak - before, model.weight_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "asked",
    [
        ("float32", "none"),
        ("bfloat16", "none"),
        pytest.param(("float16", "none"), marks=needs_fbgemm),
        ("auto", "int8"),
        ("auto", "int4"),
    ],
)
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_loading_takes_hardly_more_memory_than_the_weights(tmp_path: Path, asked: tuple[str, str], stored: str) -> None:
    large = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "num_local_experts": 8}
    tiny = write_tiny_checkpoint(tmp_path / "tiny", torch_dtype=stored)
    model = write_tiny_checkpoint(tmp_path / "large", torch_dtype=stored, vocab_size=4096, **large)
    command = [sys.executable, "-c", MEASURE, str(tiny), str(model), *asked]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak, held = map(int, run.stdout.split())
    assert held > 25e6
    assert 0.8 * held < peak < 1.15 * held, f"peak {peak / 1e6:.1f} MB for {held / 1e6:.1f} MB of weights"
