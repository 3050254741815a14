"""A start maps the tile file that its flags ask for, or says why not; a slow one leaves a file for the next."""

import errno
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.engine.api import Progress, Ready
from octavo.engine.config import EngineConfig
from octavo.engine.startup import kept
from octavo.engine.startup.build import build
from octavo.engine.startup.prepare import prepare
from octavo.engine.startup.tiles import find
from octavo.model.config import ModelConfig, ModelError
from octavo.model.kernels.choice import Backend
from octavo.model.kernels.cpu.library import library
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.prepared.places import places
from octavo.model.prepared.tile_file import FORMAT, TileFile
from octavo.model.prepared.writer import Partial, locked
from octavo.model.weights.precision import Precision
from tests.model.loading.test_takeover import as_gptq, gptq
from tests.model.loading.test_takeover import write as write_quantised
from tests.tiny import write_tiny_checkpoint

SMALL: dict[str, Any] = {
    "threads": 1,
    "kv_cache_memory": 2**20,
    "max_num_batched_tokens": 64,
    "device": "cpu",
    "quantization": "int8",
}


def ignore(progress: Progress) -> None:
    pass


def config_of(directory: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(str(directory), **{**SMALL, **changes})


def ready_of(directory: Path, **changes: Any) -> Ready:
    return build(config_of(directory, **changes), ignore)[1]


def told(ready: Ready) -> str:
    return "\n".join(ready.description)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every start count as slow, and every disk as roomy."""
    monkeypatch.setattr(kept, "SLOW", 1)
    monkeypatch.setattr(kept, "LEFT", 0)


def written() -> None:
    """Waits until what is written in the background is there."""
    for thread in threading.enumerate():
        if thread.name == "prepare":
            thread.join()


def test_a_prepared_checkpoint_is_mapped(directory: Path) -> None:
    path = prepare(config_of(directory), None, ignore).path
    assert path == directory / "octavo-int8.tiles"
    assert f"The weights are mapped from {path}." in told(ready_of(directory))
    assert "mapped" not in told(ready_of(directory, quantization="int4"))
    assert prepare(config_of(directory), None, ignore).was_there
    assert prepare(config_of(directory, verify=True), None, ignore).was_there


def test_a_directory_of_its_own_serves_without_the_checkpoint(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(config_of(directory, quantization="int4"), out, ignore)
    assert "int4 expert and int8 other weights" in told(ready_of(out, quantization="auto"))
    assert "mapped" not in told(ready_of(out, quantization="int8"))  # It reads the checkpoint.
    shutil.rmtree(directory)
    assert "mapped from" in told(ready_of(out, quantization="auto"))
    with pytest.raises(ModelError, match="was prepared for --quantization int4 on a CPU, and .* is gone"):
        ready_of(out, quantization="int8")
    with pytest.raises(ModelError, match="give the path of that checkpoint"):
        prepare(config_of(out), None, ignore)


def test_plain_weights_are_prepared_and_packed_ones_refused(directory: Path, tmp_path: Path) -> None:
    plain = {"quantization": "none", "dtype": "float32"}
    out = tmp_path / "out"
    prepare(config_of(directory, **plain), out, ignore)
    assert "mapped" in told(ready_of(out, **plain)) and "mapped" in told(ready_of(out, quantization="auto"))
    with pytest.raises(ModelError, match="cannot be prepared, since FBGEMM packs them anew"):
        prepare(config_of(directory, quantization="none", dtype="float16"), None, ignore)


@pytest.mark.parametrize("damage", ["altered", "cut off", "other source", "other format"])
def test_a_file_that_is_not_used_is_told(directory: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    path = prepare(config_of(directory), None, ignore).path
    contents = path.read_bytes()
    match damage:
        case "altered":
            path.write_bytes(contents[:5000] + bytes([contents[5000] ^ 1]) + contents[5001:])
        case "cut off":
            os.truncate(path, 5000)
        case "other source":
            write_tiny_checkpoint(directory, seed=3)
        case "other format":
            path.write_bytes(contents.replace(b'"octavo_tiles": %d' % FORMAT, b'"octavo_tiles": 999', 1))
    ready = ready_of(directory, verify=damage == "altered")
    assert "mapped" not in told(ready) and f"{path} is not used: " in caplog.text
    prepare(config_of(directory, verify=True), None, ignore)
    assert "mapped" in told(ready_of(directory, verify=True))


@pytest.mark.parametrize("damage", ["cut off", "of another model"])
def test_a_damaged_directory_without_a_checkpoint_is_refused(directory: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    path = prepare(config_of(directory), out, ignore).path
    shutil.rmtree(directory)
    if damage == "cut off":
        os.truncate(path, 5000)
    else:
        (out / "config.json").write_text(
            (out / "config.json").read_text().replace('"vocab_size": 256', '"vocab_size": 255')
        )
    with pytest.raises(ModelError, match=f"{path} cannot be used .*, and there is no checkpoint to read instead: run"):
        ready_of(out, quantization="auto")


def test_the_checkpoint_of_a_prepared_directory_is_read_for_other_flags(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    prepare(config_of(directory), out, ignore)
    assert "mapped" not in told(ready_of(out, quantization="int4"))
    assert f"{out} has no tile file for these flags: {directory} is read" in caplog.text


def test_a_gpu_maps_nothing(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(config_of(directory), out, ignore)
    assert find(config_of(out, device="cuda"), ignore).file is None
    found = find(config_of(out, device="auto", quantization="auto"), ignore)
    assert found.file is not None and found.config.quantization == "auto" and found.on_cpu.quantization == "int8"
    backend = Backend(torch.device("cuda"), OPS[Invariance.NONE])
    config = ModelConfig.from_pretrained(out)
    model, left = kept.map_if_fitting(found, config, backend, Precision.plain(torch.float16))
    assert model is None and left.file is None and found.file.file.closed and left.readable == directory
    shutil.rmtree(directory)
    with pytest.raises(ModelError, match="was prepared for --quantization int8 on a CPU"):
        _ = find(config_of(out, device="cuda", quantization="auto"), ignore).readable


def test_a_disk_that_is_full_is_told_and_left_clean(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(directory)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="where 0.00 GB are free: make room there, or write it elsewhere with --out"):
        prepare(config_of(directory), None, ignore)
    monkeypatch.undo()
    left = iter(range(5))

    def write(self: Partial, contents: bytes | memoryview) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Partial, "_write", write)
    with pytest.raises(ModelError, match="could not be written .No space left on device., and nothing of it was left"):
        prepare(config_of(directory), None, ignore)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_a_slow_start_leaves_a_file_for_the_next(directory: Path, slow: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo.engine")
    path = directory / "octavo-int8.tiles"
    assert "never" in told(ready_of(directory)) and str(path) in told(ready_of(directory))
    written()
    assert f"{path} is written: the next start maps it" in caplog.text
    with TileFile.open(path) as file:
        file.verify()
    contents = path.read_bytes()
    assert "mapped from" in told(ready_of(directory))
    path.unlink()
    prepare(config_of(directory), None, ignore)
    assert path.read_bytes() == contents


def test_nothing_is_left_where_nobody_wants_it(directory: Path, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ready_of(directory, prepare="never")
    ready_of(directory, quantization="none", dtype="float32")
    monkeypatch.setattr(kept, "LEFT", 1.0)
    assert "less than 100% of the disk free" in told(ready_of(directory))
    monkeypatch.undo()
    ready_of(directory)  # It is too small to be slow.
    written()
    assert [path.name for path in directory.iterdir() if "tiles" in path.name] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_left_for_the_cache(directory: Path, tmp_path: Path) -> None:
    directory.chmod(0o555)
    cache = tmp_path / "cache"
    path = prepare(config_of(directory, cache=str(cache)), None, ignore).path
    assert path.parent == places(directory, cache)[1]
    with pytest.raises(ModelError, match="can be written: give a directory with --out"):
        prepare(config_of(directory), None, ignore)


def test_the_cache_takes_what_the_checkpoint_does_not(
    directory: Path, tmp_path: Path, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kept", "prepare"):
        monkeypatch.setattr(f"octavo.engine.startup.{module}.is_writable", lambda each: each != directory)
    cache = tmp_path / "cache"
    config = config_of(directory, cache=str(cache))
    path = prepare(config, None, ignore).path
    assert path.parent == places(directory, cache)[1]
    assert f"mapped from {path}" in told(ready_of(directory, cache=str(cache)))
    monkeypatch.setattr("octavo.engine.startup.kept.is_writable", lambda each: False)
    assert "no place for a tile file can be written" in told(ready_of(directory))


def test_whoever_comes_second_leaves_the_writing_to_the_first(
    directory: Path, slow: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "octavo.engine")
    with locked(directory / "octavo-int8.tiles", wait=None):
        ready_of(directory)
        written()
    assert "is being written by another process" in caplog.text
    assert not (directory / "octavo-int8.tiles").exists()


def test_no_memory_is_reserved_for_weights_that_are_mapped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config_of(directory), None, ignore)
    asked: list[int] = []

    class Noted:
        def __init__(self, size: int) -> None:
            asked.append(size)

    monkeypatch.setattr("octavo.engine.startup.build.Reserve", Noted)
    monkeypatch.setattr("octavo.engine.startup.start.cache_zeros", lambda *given: torch.zeros)
    monkeypatch.setattr("octavo.engine.startup.start.observer", lambda *given: None)
    monkeypatch.setattr("octavo.engine.startup.sizing.bytes_to_reserve", lambda *given: 1 << 40)
    monkeypatch.setattr("octavo.engine.startup.start.allocate", lambda *given: None)
    with pytest.raises(AttributeError):  # There is no cache in this test.
        ready_of(directory)
    assert asked and all(size < 2**24 for size in asked)


KEPT: dict[str, Any] = {"quantization": "auto", "dtype": "float32"}


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """Writes a checkpoint in GPTQ of version 1."""
    return write_quantised(tmp_path / "quantised", gptq(), as_gptq(4, 32))


def test_a_quantised_checkpoint_is_prepared_as_it_is(quantised: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(config_of(quantised, **KEPT), out, ignore)
    assert first.path == out / "octavo-kept-float32.tiles" and not first.was_there
    assert prepare(config_of(quantised, **KEPT), out, ignore).was_there
    expected = "mapped from"
    assert expected in told(ready_of(out, **KEPT))
    shutil.rmtree(quantised)
    assert expected in told(ready_of(out, **KEPT)) and expected in told(ready_of(out, quantization="auto"))
    with pytest.raises(ModelError, match="was prepared for --dtype float32 on a CPU, and .* is gone"):
        ready_of(out, quantization="none", dtype="float32")


def test_integers_that_mean_something_else_are_another_source(
    quantised: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files of weights stay the same, byte for byte."""
    prepare(config_of(quantised, **KEPT), None, ignore)
    assert "mapped from" in told(ready_of(quantised, **KEPT))
    path = quantised / "config.json"
    path.write_text(path.read_text().replace('"quant_method"', '"checkpoint_format": "gptq_v2", "quant_method"'))
    assert "mapped from" not in told(ready_of(quantised, **KEPT))
    assert "its weights are said to be quantised in another way" in caplog.text
    assert not prepare(config_of(quantised, **KEPT), None, ignore).was_there
    assert "mapped from" in told(ready_of(quantised, **KEPT))


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_steps_are_measured_once(directory: Path, tmp_path: Path) -> None:
    prepare(config_of(directory), None, ignore)
    config = config_of(directory, max_num_batched_tokens=None, cache=str(tmp_path / "cache"))
    seen: list[Progress] = []
    first, _ = build(config, ignore)
    second, _ = build(config, seen.append)
    assert second.scheduler.limits.max_num_batched_tokens == first.scheduler.limits.max_num_batched_tokens
    assert len(list((tmp_path / "cache" / "steps").iterdir())) == 1
