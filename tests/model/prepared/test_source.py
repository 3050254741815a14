"""A source is compared by names, sizes, times and headers, and by contents only when it is asked for."""

import json
import os
from pathlib import Path

import pytest
import torch

from octavo.model.prepared.source import Source
from tests.model.checkpoints import change, shard
from tests.tiny import write_tiny_checkpoint


def source_of(directory: Path) -> Source:
    source = Source.of(directory)
    assert source is not None
    return source


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path)


def test_a_source_that_is_the_same(checkpoint: Path) -> None:
    assert source_of(checkpoint).change(source_of(checkpoint)) is None
    assert Source.from_json(source_of(checkpoint).to_json()) == source_of(checkpoint)


def test_shards_are_those_of_the_index(checkpoint: Path) -> None:
    before = source_of(checkpoint)
    shard(checkpoint)
    (checkpoint / "another.safetensors").write_bytes(b"\0" * 8)
    assert [file.name for file in source_of(checkpoint).files] == [
        f"model-{n:05}-of-00003.safetensors" for n in (0, 1, 2)
    ]
    assert before.change(source_of(checkpoint)) == "its files have other names"


def test_what_is_said_of_quantised_weights_belongs_to_them(checkpoint: Path) -> None:
    """The same integers mean something else in another version of a format."""
    plain = source_of(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    changes = {}
    for version in ("gptq", "gptq_v2"):
        described = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": version}}
        (checkpoint / "config.json").write_text(json.dumps(config | described))
        changes[version] = source_of(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert plain.change(source_of(checkpoint)) is None
    (checkpoint / "quantize_config.json").write_text('{"bits": 4}')
    beside = source_of(checkpoint)
    words = "its weights are said to be quantised in another way"
    assert plain.change(beside) == plain.change(changes["gptq"]) == words
    assert changes["gptq"].change(changes["gptq_v2"]) == words
    assert Source.from_json(beside.to_json()) == beside


def test_another_size_or_header_or_time_is_a_change(checkpoint: Path) -> None:
    before, path = source_of(checkpoint), checkpoint / "model.safetensors"
    text = path.read_bytes()

    def change_now(contents: bytes) -> str | None:
        path.write_bytes(contents)
        os.utime(path, ns=(0, before.files[0].modified))
        return before.change(source_of(checkpoint))

    assert change_now(text) is None
    assert change_now(text + b"\0") == "model.safetensors has another size"
    assert change_now(text.replace(b"model.norm", b"model.mron", 1)) == "model.safetensors holds other tensors"
    path.write_bytes(text)
    os.utime(path, ns=(0, 7))
    assert "was written at another time" in (before.change(source_of(checkpoint)) or "")
    assert before.change(source_of(checkpoint), times=False) is None


def test_contents_are_compared_when_asked(checkpoint: Path) -> None:
    before, path = source_of(checkpoint).with_contents(), checkpoint / "model.safetensors"
    counted: list[int] = []
    assert before.other_contents(source_of(checkpoint), counted.append) is None
    assert sum(counted) == path.stat().st_size == before.size
    text = bytearray(path.read_bytes())
    text[-1] ^= 1
    path.write_bytes(text)
    assert before.change(source_of(checkpoint), times=False) is None
    assert before.other_contents(source_of(checkpoint)) == "model.safetensors has other contents"


def test_weights_that_are_not_all_there_are_gone(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / "model-00001-of-00003.safetensors").unlink()
    assert Source.of(checkpoint) is None
    assert Source.of(checkpoint / "nowhere") is None
    (checkpoint / "model.safetensors.index.json").write_text("{")
    assert Source.of(checkpoint) is None


def test_other_tensors_are_seen_by_the_header(checkpoint: Path) -> None:
    before = source_of(checkpoint)
    change(checkpoint, lambda tensors: tensors.update({"more": torch.zeros(1)}))
    assert before.change(source_of(checkpoint)) is not None
