"""A tile file is the model: the same bits in every matrix, from a checkpoint or from memory, however it was written."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.loading.forms import can_be_mapped, contents_of, form_of, variant_of
from octavo.model.loading.mapped import fetch, map_model
from octavo.model.loading.prepare import Order, write_checkpoint, write_model
from octavo.model.prepared import writer
from octavo.model.prepared.places import name_of
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import FORMAT, TileFile, Unusable
from octavo.model.prepared.writer import hidden
from octavo.model.weights.kinds import EVEN4, INT4, INT8, INT8_FINE
from octavo.model.weights.precision import Precision, Wanted, choose_precision
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import CPU, change, shard, stack_experts
from tests.model.pages import Pages
from tests.model.prepared.test_tile_file import rewrite
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[3]
PROMPT = list(range(5, 25))
WAYS = [("auto", "int8"), ("auto", "int4"), ("float32", "none"), ("bfloat16", "none")]
MODELS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "tied": {"tie_word_embeddings": True},
    "dense": {"model_type": "mistral"},
    "bf16": {"torch_dtype": "bfloat16"},
}


def precision_of(way: tuple[str, str]) -> Precision:
    return choose_precision(Wanted(*way), None, CPU, kernels=True)


def source_of(directory: Path) -> Source:
    source = Source.of(directory)
    assert source is not None
    return source


def prepare(directory: Path, way: tuple[str, str], **changes: Any) -> Path:
    config, precision = ModelConfig.from_pretrained(directory), precision_of(way)
    target = directory / name_of(variant_of(precision))
    order = Order(**{"target": target, "variant": variant_of(precision), "source": source_of(directory), **changes})
    write_checkpoint(order, config, select_backend(config, CPU), precision)
    return target


def mapped(path: Path, way: tuple[str, str]) -> Decoder:
    config = ModelConfig.from_pretrained(path.parent)
    with TileFile.open(path) as file:
        return map_model(file, config, select_backend(config, CPU), precision_of(way))


def opened(path: Path) -> TileFile:
    """Returns a file that was read and closed again."""
    with TileFile.open(path) as file:
        return file


def loaded(directory: Path, way: tuple[str, str]) -> Decoder:
    config = ModelConfig.from_pretrained(directory)
    return load_model(directory, config, select_backend(config, CPU), precision_of(way))


def weights(model: Decoder) -> list[tuple[dict[str, Any], bytes]]:
    others = [model.embedding.table, model.norm.weight]
    for layer in model.layers:
        others += [layer.input_norm.weight, layer.post_norm.weight]
        others += [] if layer.moe.router is None else [layer.moe.router.weight]
    return [(form_of(each), bytes(contents_of(each))) for each in (*others, *model.matrices())]


def logits(model: Decoder) -> Tensor:
    return Pages(model, sequences=1, length=len(PROMPT)).prompt(PROMPT)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
@pytest.mark.parametrize("model", MODELS)
def test_what_is_mapped_is_what_would_be_loaded(tmp_path: Path, way: tuple[str, str], model: str) -> None:
    write_tiny_checkpoint(tmp_path, **MODELS[model])
    expected = loaded(tmp_path, way)
    found = mapped(prepare(tmp_path, way), way)
    assert weights(found) == weights(expected)
    assert torch.equal(logits(found), logits(expected))
    assert (found.head is found.embedding.table) == (expected.head is expected.embedding.table)


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way[1])
def test_a_matrix_that_stays_plain_is_plain_in_the_file(tmp_path: Path, way: tuple[str, str]) -> None:
    write_tiny_checkpoint(tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    change(tmp_path, lambda tensors: tensors[name].mul_(1e9))
    assert weights(mapped(prepare(tmp_path, way), way)) == weights(loaded(tmp_path, way))


def test_the_file_is_the_same_from_a_checkpoint_and_from_memory_and_from_any_naming(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    way = WAYS[0]
    contents = prepare(tmp_path, way, threads=3).read_bytes()
    order = Order(tmp_path / "again", "int8", source_of(tmp_path))
    write_model(order, loaded(tmp_path, way))
    assert order.target.read_bytes() == contents
    extents = opened(tmp_path / "again").extents
    change(tmp_path, stack_experts)
    shard(tmp_path)
    assert opened(prepare(tmp_path, way)).extents == extents


def test_an_expert_is_one_extent_of_whole_pages(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    file = opened(prepare(tmp_path, WAYS[1]))
    experts = {extent.name: extent for extent in file.extents if ".experts." in extent.name}
    assert len(experts) == 2 * 4 and all(extent.offset % 4096 == extent.size % 4096 == 0 for extent in file.extents)
    pieces = [piece.name for piece in experts["layers.1.experts.2"].pieces]
    assert pieces == ["layers.1.experts.2.gate_up", "layers.1.experts.2.down"]
    ends = [extent.offset + extent.size for extent in file.extents]
    assert [extent.offset for extent in file.extents] == [4096, *ends[:-1]]


def test_what_is_mapped_cannot_be_written_to_and_is_fetched_whole(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    way = WAYS[0]
    memory = mapped(prepare(tmp_path, way), way).matrices()
    cells = next(iter(memory)).memory
    fetch(cells).join()
    lines = Path("/proc/self/maps").read_text().splitlines() if sys.platform == "linux" else []
    ways = {line.split()[1] for line in lines if line.endswith("octavo-int8.tiles")}
    assert ways <= {"r--s"} and (ways or sys.platform != "linux")


def test_a_file_of_another_model_is_not_used(tmp_path: Path) -> None:
    path = prepare(write_tiny_checkpoint(tmp_path), WAYS[0])
    with pytest.raises(Unusable, match="held in another way"):
        mapped(path, WAYS[1])
    for other in (
        {"num_local_experts": 5},
        {"num_local_experts": 3},
        {"num_hidden_layers": 1},
        {"intermediate_size": 64},
    ):
        write_tiny_checkpoint(tmp_path, **other)
        with pytest.raises(Unusable, match="not those that config.json asks for"):
            mapped(path, WAYS[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.experts.1.gate_up", {"interleaved": False}),
        ("layers.0.experts.1.down", {"interleaved": True}),
        ("layers.0.qkv", {"terms": 9}),
        ("layers.1.o", {"kind": "int3"}),
        ("layers.1.o", {"shape": [-32, -32]}),
        ("layers.1.o", {"shape": [32, 33]}),
        ("layers.1.router", {"dtype": "bfloat16"}),
        ("layers.1.o", {"order": "int32"}),
        ("norm", {"dtype": "float64"}),
        ("head", {"dtype": "bfloat16"}),
    ],
)
def test_forms_that_the_kernels_do_not_expect_are_refused(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    """Kernels take pointers, and would read beyond what is there."""
    path = prepare(write_tiny_checkpoint(tmp_path), WAYS[0])

    def edit(header: dict[str, Any]) -> None:
        pieces = {piece["name"]: piece for extent in header["extents"] for piece in extent["pieces"]}
        pieces[name]["form"].update(change)

    rewrite(path, edit)
    with pytest.raises(Unusable, match="not those that config.json asks for"):
        mapped(path, WAYS[0])


def test_a_tied_head_needs_a_config_that_says_so(tmp_path: Path) -> None:
    path = prepare(write_tiny_checkpoint(tmp_path, tie_word_embeddings=True), WAYS[2])
    write_tiny_checkpoint(tmp_path)
    with pytest.raises(Unusable, match="not those that config.json asks for"):
        mapped(path, WAYS[2])


def test_a_checkpoint_that_changes_meanwhile_is_not_prepared(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="changed while it was read"):
        prepare(
            tmp_path, WAYS[0], report=lambda what, done, total: os.utime(tmp_path / "model.safetensors", ns=(0, done))
        )
    assert not (tmp_path / "octavo-int8.tiles").exists()


def test_what_fbgemm_packs_cannot_be_mapped() -> None:
    assert all(can_be_mapped(precision_of(way)) for way in WAYS)
    assert not can_be_mapped(choose_precision(Wanted("float16"), None, CPU, kernels=True))


@pytest.fixture(params=[1000, 4096, 10_000])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a tiny file be many chunks."""
    monkeypatch.setattr(writer, "CHUNK", request.param)


def test_an_interrupted_run_is_continued(tmp_path: Path, small_chunks: None) -> None:
    write_tiny_checkpoint(tmp_path)
    contents = prepare(tmp_path, WAYS[0]).read_bytes()
    target = tmp_path / "octavo-int8.tiles"
    target.unlink()

    def stop(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, WAYS[0], report=stop)
    assert not target.exists() and hidden(target, "partial").exists()
    with hidden(target, "journal").open("a") as journal:
        journal.write('{"name": "cut o')
    seen: list[int] = []
    prepare(tmp_path, WAYS[0], report=lambda what, done, total: seen.append(done))
    assert seen[0] in (7, 8) and target.read_bytes() == contents  # A chunk that was not full is lost.
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["altered", "cut off", "of another source"])
def test_what_is_left_of_a_run_is_used_only_if_it_is_whole(tmp_path: Path, small_chunks: None, damage: str) -> None:
    write_tiny_checkpoint(tmp_path)
    contents = prepare(tmp_path, WAYS[0]).read_bytes()
    target = tmp_path / "octavo-int8.tiles"
    target.unlink()

    def stop(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, WAYS[0], report=stop)
    left = hidden(target, "partial")
    if damage == "altered":
        text = bytearray(left.read_bytes())
        text[5000] ^= 1
        left.write_bytes(text)
    elif damage == "cut off":
        os.truncate(left, left.stat().st_size - 1)
    else:
        os.utime(tmp_path / "model.safetensors", ns=(0, 5))
    prepare(tmp_path, WAYS[0])
    if damage == "of another source":
        assert opened(target).identity.source.files[0].modified == 5
    else:
        assert target.read_bytes() == contents


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from octavo.model.prepared import writer
from tests.model.loading.test_prepare import WAYS, prepare
writer.CHUNK = 8192
print("begin", flush=True)
prepare(Path({directory!r}), WAYS[0])
print("end", flush=True)
"""


def test_a_kill_at_any_time_leaves_no_file_or_a_good_one(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, num_local_experts=8, num_hidden_layers=4)
    target = tmp_path / "octavo-int8.tiles"
    contents = prepare(tmp_path, WAYS[0]).read_bytes()
    target.unlink()
    script = SCRIPT.format(root=str(ROOT), directory=str(tmp_path))
    for trial in range(3):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "begin\n"
            time.sleep(random.Random(trial).uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        assert not target.exists() or target.read_bytes() == contents
        target.unlink(missing_ok=True)
    prepare(tmp_path, WAYS[0])
    assert target.read_bytes() == contents


GOLDEN = {  # by format: hashes of what a certain matrix becomes
    1: {
        "int8": "b6f55d73e7d9bc2b",
        "fine": "2c650294c29a3887",
        "int4": "c4a8d3eae523b244",
        "even4": "770f0136b7be1900",
    },
}


@pytest.mark.parametrize(("kind", "name"), [(INT8, "int8"), (INT8_FINE, "fine"), (INT4, "int4"), (EVEN4, "even4")])
def test_the_number_of_the_format_rises_with_every_change_of_layout_or_rounding(kind: Any, name: str) -> None:
    """If this fails, tile files that are on disks hold something else: raise FORMAT, and note the new hashes."""
    rows = torch.arange(160 * 96, dtype=torch.float32).view(160, 96)
    dense = (rows * 2654435761 % 2**32) / 2**31 - 1
    held = b"".join(bytes(contents_of(TiledWeight.pack(kind, dense, paired))) for paired in (False, True))
    assert hashlib.sha256(held).hexdigest()[:16] == GOLDEN[FORMAT][name]
