"""A damaged or hostile GGUF file is refused in one sentence that names it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.model.config import ModelError
from octavo.model.gguf.file import GgufModel, is_gguf, split_paths
from tests.model.gguf.writing import write

Numbers = np.float32


def small(path: Path, **metadata: Any) -> Path:
    tensors = {"a": np.ones((2, 64), Numbers), "b": np.arange(96, dtype=Numbers).reshape(3, 32)}
    return write(path, "llama", {"text": "a word", "list": [1, 2, 3], "words": ["x", "y"], **metadata}, tensors, _q8)


def _q8(name: str) -> str:
    return "Q8_0" if name == "a" else "F32"


def header(entries: bytes = b"", tensors: int = 0, count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + entries


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, sizes: tuple[int, ...], type: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type, offset)


def test_it_reads_what_gguf_writes(tmp_path: Path) -> None:
    path = small(tmp_path / "small.gguf", big=1.5, yes=True)
    model, reader = GgufModel.read(path), gguf.GGUFReader(path)
    for each in reader.tensors:
        found = model.tensors[each.name]
        assert found.offset == int(each.data_offset) and found.size == int(each.n_bytes)
        assert list(reversed(found.shape)) == each.shape.tolist() and found.type.number == each.tensor_type.value
    assert model.metadata["words"] == ["x", "y"] and model.metadata["list"] == [1, 2, 3]
    assert model.metadata["big"] == 1.5 and model.metadata["yes"] is True
    assert model.metadata["general.architecture"] == "llama"


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    for name in ("a", "b"):
        writer.add_tensor(name, np.ones((1, 3), Numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    places = {each.name: int(each.data_offset) for each in gguf.GGUFReader(path).tensors}
    assert {name: each.offset for name, each in GgufModel.read(path).tensors.items()} == places


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(40), "does not begin with the letters GGUF"),
        (header(version=1), "of version 1"),
        (header(version=3 << 24), "little-endian"),
        (header(tensors=2**63), "it claims to have 9223372036854775808 tensors"),
        (header(count=2**40), "it claims to have 1099511627776 entries of metadata"),
        (header(count=3) + bytes(20), "is damaged"),
        (header(struct.pack("<Q", 2**60) + bytes(100), count=1), "bytes in a text"),
        (header(text("k") + struct.pack("<I", 77) + bytes(40), count=1), "a value of type 77"),
        (header(text("k") + struct.pack("<IIQ", 9, 4, 2**50) + bytes(40), count=1), "items in a list"),
        (
            header(text("k") + struct.pack("<IIQ", 9, 9, 1) * 1 + struct.pack("<IQ", 9, 1) * 9 + bytes(9), count=1),
            "nested",
        ),
        (header(2 * (text("k") + struct.pack("<II", 4, 1)), count=2), "its metadata has 'k' twice"),
        (header(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(40), count=1), "is not UTF-8"),
        (header(tensor("t", (1, 1, 1, 1, 1)) + bytes(99), tensors=1), "has 5 dimensions"),
        (header(tensor("t", (0,)) + bytes(99), tensors=1), "has the shape [0]"),
        (header(tensor("t", (2**40, 2**40)) + bytes(99), tensors=1), "is cut short"),
        (header(tensor("t", (8,), type=16) + bytes(99), tensors=1), "in IQ2_XXS, which is not read here"),
        (header(tensor("t", (8,), type=99) + bytes(99), tensors=1), "in the unknown type 99"),
        (header(tensor("t", (40,), type=8) + bytes(99), tensors=1), "has blocks of 32"),
        (header(2 * tensor("t", (1,)) + bytes(99), tensors=2), "the tensor 't' is there twice"),
        (header(tensor("t", (1,), offset=8) + bytes(99), tensors=1), "begins at an odd place"),
        (header(tensor("t", (1,), offset=2**63) + bytes(99), tensors=1), "is cut short"),
        (header(tensor("t", (16,)) + tensor("u", (16,), offset=32) + bytes(200), tensors=2), "'t' and 'u' overlap"),
        (header(text("general.alignment") + struct.pack("<II", 4, 0), count=1), "general.alignment is 0"),
        (header(text("general.alignment") + struct.pack("<II", 4, 12), count=1), "general.alignment is 12"),
        (
            header(b"".join(text(str(n)) + struct.pack("<IIQ", 9, 0, 2**22) + bytes(2**22) for n in range(3)), count=3),
            "it claims to have 4194304 items in a list",
        ),
        (header(text("split.count") + struct.pack("<II", 4, 3), count=1), "is a part of 3 by its metadata"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        GgufModel.read(path)
    message = str(caught.value)
    assert sentence in message and str(path) in message and message.count("\n") == 0 and message.endswith(".")


def test_each_cut_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path / "small.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(len(whole) - 32):  # The last tensor may be followed by padding.
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="gguf"):
            GgufModel.read(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(small(tmp_path / "small.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole)
    try:
        for each in GgufModel.read(path).tensors.values():
            assert each.offset >= 0 and each.offset + each.size <= len(whole)
    except ModelError as error:
        assert str(error).count("\n") == 0


def remove(paths: list[Path]) -> None:
    paths[1].unlink()


def swap(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[0].read_bytes())


@pytest.mark.parametrize(
    ("edit", "sentence"), [(remove, "lacks big-00002-of-00002.gguf"), (swap, "is not part 2 of 2")]
)
def test_parts_that_do_not_fit(tmp_path: Path, edit: Callable[[list[Path]], None], sentence: str) -> None:
    paths = []
    for number in (0, 1):
        paths.append(tmp_path / f"big-{number + 1:05}-of-00002.gguf")
        tensors = {f"t{number}": np.ones((1, 4), Numbers)}
        write(paths[-1], "llama", {"split.no": number, "split.count": 2}, tensors, lambda name: "F32")
    assert GgufModel.read(paths[1]).tensors.keys() == {"t0", "t1"}
    edit(paths)
    with pytest.raises(ModelError, match=sentence):
        GgufModel.read(paths[0])


@pytest.mark.parametrize("name", ["x-00001-of-00000", "x-00000-of-00001", "x-00003-of-00002"])
def test_a_number_that_no_part_has_is_a_part_of_the_name(tmp_path: Path, name: str) -> None:
    path = small(tmp_path / f"{name}.gguf")
    assert split_paths(path) == GgufModel.read(path).paths == (path,)
    small(path, **{"split.count": 0})
    with pytest.raises(ModelError, match="is a part of 0 by its metadata and of 1 by its name"):
        GgufModel.read(path)


def test_what_is_taken_for_a_gguf_file(tmp_path: Path) -> None:
    named, other = tmp_path / "x.gguf", tmp_path / "blob"
    named.write_bytes(b"")
    other.write_bytes(b"GGUF....")
    assert is_gguf(named) and is_gguf(other)
    other.write_bytes(b"GGU")
    assert not is_gguf(other)
