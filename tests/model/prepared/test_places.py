"""Flags choose among tile files; a prepared directory lives by them, and knows where its checkpoint was."""

import shutil
from pathlib import Path

import pytest

from octavo.model.config_file import ModelError
from octavo.model.prepared.directory import copy_all_but_weights
from octavo.model.prepared.places import Checkpoint, Flags, name_of, places
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import Identity, TileFile, Unusable
from octavo.model.prepared.writer import Partial
from tests.tiny import write_tiny_checkpoint


def write(directory: Path, source: Path, variant: str = "int8") -> Path:
    """Writes a tile file without weights."""
    target, found = directory / name_of(variant), Source.of(source)
    assert found is not None
    with Partial(target, Identity(variant, {}, False, found, "0.0.1")) as partial:
        partial.add("first", [("a", {}, memoryview(b"1"))])
        partial.publish(found.with_contents())
    return target


@pytest.mark.parametrize(
    ("dtype", "quantization", "variants"),
    [
        ("auto", "auto", ("kept-int8", "int8")),
        ("auto", "int8", ("int8",)),
        ("float32", "int4", ("int4",)),
        ("float32", "auto", ("kept-float32", "float32")),
        ("bfloat16", "none", ("bfloat16",)),
        ("auto", "none", ()),
        ("auto", "fp8", ()),
    ],
)
def test_flags_mean_variants(dtype: str, quantization: str, variants: tuple[str, ...]) -> None:
    assert Flags(dtype, quantization).variants == variants
    assert all(variant in Flags.for_variant(variant).variants for variant in variants)


def test_the_file_beside_the_checkpoint_comes_first_and_then_the_cache(tmp_path: Path) -> None:
    directory, cache = write_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "cache"
    own, kept = places(directory, cache)
    assert own == directory and kept.is_relative_to(cache) and kept.name.startswith("tiny-")
    assert places(tmp_path / "other" / "tiny", cache)[1] != kept
    kept.mkdir(parents=True)
    second = write(kept, directory)
    checkpoint = Checkpoint.of(directory, cache)
    assert list(checkpoint.candidates(Flags("auto", "auto"))) == [second]
    first = write(directory, directory)
    assert list(checkpoint.candidates(Flags("auto", "auto"))) == [first, second]
    assert list(checkpoint.candidates(Flags("auto", "int4"))) == []
    assert list(Checkpoint.of(directory, None).candidates(Flags("auto", "int8"))) == [first]


def test_a_source_that_has_changed_is_told(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    path = write(directory, directory)
    Checkpoint.of(directory, None).open(path, verify=True).close()
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy, copy_function=shutil.copyfile)  # which gives new times
    with pytest.raises(Unusable, match="its source has changed: model.safetensors was written at another time"):
        Checkpoint.of(copy, None).open(copy / path.name, verify=False)
    Checkpoint.of(copy, None).open(copy / path.name, verify=True).close()
    write_tiny_checkpoint(copy, seed=1)
    with pytest.raises(Unusable, match="its source has changed: model.safetensors has other contents"):
        Checkpoint.of(copy, None).open(copy / path.name, verify=True)


def test_a_prepared_directory_knows_its_source_and_lives_without(tmp_path: Path) -> None:
    directory, out = write_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "out"
    out.mkdir()
    path = write(out, directory, "int4")
    checkpoint = Checkpoint.of(out, None)
    assert checkpoint.is_prepared and checkpoint.source == Source.of(directory)
    assert checkpoint.choose(Flags("auto", "auto")) == Flags("auto", "int4")
    assert checkpoint.choose(Flags("auto", "int8")) == Flags("auto", "int8")
    shutil.rmtree(directory)
    checkpoint = Checkpoint.of(out, None)
    assert checkpoint.is_prepared and checkpoint.source is None
    checkpoint.open(path, verify=True).close()
    path.write_bytes(b"damaged")
    assert Checkpoint.of(out, None).source is None


def test_a_checkpoint_with_files_beside_it_is_no_prepared_directory(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path)
    write(directory, directory, "int4")
    checkpoint = Checkpoint.of(directory, None)
    assert not checkpoint.is_prepared and checkpoint.choose(Flags("auto", "auto")) == Flags("auto", "auto")
    (directory / "model.safetensors").unlink()
    assert Checkpoint.of(directory, None).is_prepared


def test_all_but_weights_is_copied(tmp_path: Path) -> None:
    directory, out = write_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "out"
    (directory / "additional_chat_templates").mkdir()
    served = ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "LICENSE")
    for name in (*served, "model.safetensors.index.json", "pytorch_model.bin"):
        (directory / name).write_text(name)
    out.mkdir()
    for _ in range(2):
        copy_all_but_weights(directory, out)
        there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert there == {*served, "config.json"}
    copy_all_but_weights(directory, directory)


def test_the_directory_of_another_model_is_left_alone(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(ModelError, match="holds weights of its own"):
        copy_all_but_weights(directory, write_tiny_checkpoint(tmp_path / "other"))
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="of another model"):
        copy_all_but_weights(directory, tmp_path / "third")


def test_opening_looks_at_the_same_file_as_mapping(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path)
    path = write(directory, directory)
    with TileFile.open(path) as file:
        path.unlink()
        with file.map() as mapped:
            assert mapped[4096:4097] == b"1"
