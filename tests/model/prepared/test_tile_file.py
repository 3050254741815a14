"""A tile file that is damaged, cut off or of another version is found before anything in it is used."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from octavo.model.prepared.source import Source, SourceFile
from octavo.model.prepared.tile_file import FORMAT, HEAD, Identity, TileFile, Unusable
from octavo.model.prepared.writer import Partial

SOURCE = Source("/models/tiny", (SourceFile("model.safetensors", 7, 5, "ab"),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "octavo-int8.tiles"
    with Partial(target, Identity("int8", {"experts": "int8"}, False, SOURCE, "0.0.1")) as partial:
        partial.add("first", [("a", {"dtype": "float32"}, memoryview(b"12345678")), ("b", {}, memoryview(bytes(5000)))])
        partial.add("second", [("c", {}, memoryview(b"x"))])
        partial.publish(SOURCE)
    return target


def rewrite(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the header as one does who knows the format."""
    contents = path.read_bytes()
    head = json.loads(contents[:HEAD])
    header = json.loads(contents[head["offset"] :])
    edit(header)
    text = json.dumps(header).encode()
    head |= {"size": len(text), "sha256": sha256(text).hexdigest()}
    path.write_bytes(json.dumps(head).encode().ljust(HEAD) + contents[HEAD : head["offset"]] + text)


def why(path: Path) -> str:
    with pytest.raises(Unusable) as caught:
        TileFile.open(path).close()
    return str(caught.value)


def test_what_was_written_is_read(path: Path) -> None:
    with TileFile.open(path) as file:
        assert (file.identity.variant, file.identity.source, file.identity.octavo) == ("int8", SOURCE, "0.0.1")
        assert [(extent.name, extent.offset, extent.size) for extent in file.extents] == [
            ("first", 4096, 8192),
            ("second", 12288, 4096),
        ]
        a, b = file.extents[0].pieces
        assert (a.offset, a.size, a.form, b.offset, b.size) == (4096, 8, {"dtype": "float32"}, 4096 + 64, 5000)
        file.verify()
        with file.map() as mapped:
            assert mapped[4096:4104] == b"12345678" and mapped[12288:12289] == b"x"


def test_a_file_of_another_format_is_not_read(path: Path) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents.replace(b'"octavo_tiles": %d' % FORMAT, b'"octavo_tiles": 999', 1))
    assert why(path) == f"it is of format 999, and this version of Octavo reads {FORMAT}"


@pytest.mark.parametrize("size", [0, 1, HEAD - 1, HEAD, 10_000])
def test_a_file_that_is_cut_off_is_not_read(path: Path, size: int) -> None:
    os.truncate(path, size)
    assert ("its header is damaged" if size < HEAD - 1 else f"it has {size:,} bytes, and ") in why(path)


def test_a_file_that_goes_on_is_not_read(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")
    assert "were written" in why(path)


def test_an_altered_header_is_seen(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-20] ^= 1
    path.write_bytes(contents)
    assert why(path) == "its header was altered"


def test_altered_contents_are_seen_when_asked(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[12288] ^= 1
    path.write_bytes(contents)
    counted: list[int] = []
    with TileFile.open(path) as file, pytest.raises(Unusable, match="its part second was altered"):
        file.verify(counted.append)
    assert sum(counted) == 8192 + 4096


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.clear(),
        lambda header: header["extents"][0].update(offset=0),
        lambda header: header["extents"][0].update(offset="0"),
        lambda header: header["extents"][1].update(size=1 << 40),
        lambda header: header["extents"][0]["pieces"][0].update(offset=12288),
        lambda header: header["extents"][0]["pieces"][0].update(size=-1),
        lambda header: header["extents"][0]["pieces"][0].update(offset=4097, size=1),
        lambda header: header["extents"][0]["pieces"][0].pop("form"),
        lambda header: header["identity"].update(source=None),
        lambda header: header.update(extents=7),
    ],
)
def test_a_header_that_cannot_be_is_not_believed(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    rewrite(path, edit)
    assert why(path) == "its header is damaged"


def test_numbers_of_another_order_are_not_read(path: Path) -> None:
    rewrite(path, lambda header: header["identity"].update(byteorder="middle"))
    assert why(path) == "its numbers are middle-endian"


@pytest.mark.parametrize(
    "contents", [b"", b"{}", b"[]", b"null", b"\xff" * 9000, b"[" * 9000, b'{"octavo_tiles": %d}' % FORMAT]
)
def test_a_file_that_is_something_else_is_not_read(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)
    assert why(path) == "its header is damaged"


def test_a_file_that_cannot_be_opened_is_not_read(tmp_path: Path) -> None:
    assert why(tmp_path / "nowhere") == "it cannot be opened (No such file or directory)"
    assert why(tmp_path).startswith("it cannot be ")
