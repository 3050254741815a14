"""Checks that only kernels that were built from these very sources are called."""

import _ctypes
import re
from ctypes import Structure
from pathlib import Path
from zlib import crc32

import pytest

import octavo.model.kernels.cpu.library as kernels
from octavo.model.kernels.cpu.structs import INTERFACE, STRUCTS, WeightStruct

HEADER = Path(kernels.__file__).with_name("octavo.h").read_text(encoding="utf-8")


class GrownStruct(WeightStruct):
    """A GrownStruct has a field that came later."""

    _fields_ = (("more", WeightStruct),)


@pytest.fixture
def none_loaded():
    """Forgets whatever the test loads."""
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_the_interface_is_the_number_of_what_is_declared():
    declared = re.sub(r"INTERFACE \w+", "INTERFACE", without_comments(HEADER))
    number = crc32(" ".join(declared.split()).encode())
    hint = f"octavo.h has changed: write {number:#x} for INTERFACE, there and in structs.py"
    assert f"#define INTERFACE {number:#x}\n" in HEADER and number == INTERFACE, hint


def test_the_structs_are_those_of_the_header():
    """Compares their names and those of their fields, in the header's order."""
    found = re.findall(r"typedef struct \{(.*?)\} (\w+);", without_comments(HEADER), re.DOTALL)
    in_c = [(f"{name}Struct", re.findall(r"(\w+)(?=(?:\[\d+\])?[,;])", body)) for body, name in found]
    assert [(struct.__name__, fields_of(struct)) for struct in STRUCTS] == in_c


def fields_of(struct: type[Structure]) -> list[str]:
    return [field[0] for field in struct._fields_]


@pytest.mark.skipif(kernels.library() is None, reason="the C kernels were not built")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INTERFACE", INTERFACE + 1),
        ("STRUCTS", (GrownStruct, *STRUCTS[1:])),
        ("STRUCTS", STRUCTS[:-1]),
        ("SIGNATURES", kernels.SIGNATURES | {"octavo_later": (None, ())}),
    ],
    ids=["other declarations", "a grown struct", "a struct less", "a function more"],
)
def test_kernels_of_other_sources_are_not_called(monkeypatch, none_loaded, name, value):
    monkeypatch.setattr(kernels, name, value)
    assert kernels.library() is None
    assert kernels.why_missing() == "were built from other sources than these"


def test_a_file_that_is_no_library_of_ours_is_not_called(monkeypatch, none_loaded, tmp_path):
    torn = tmp_path / "torn.so"
    torn.write_bytes(b"\x7fELF")
    for path in (torn, Path(_ctypes.__file__)):  # not a library; one that has none of our functions
        monkeypatch.setattr(kernels, "find", lambda path=path: path)
        kernels.library.cache_clear()
        assert kernels.library() is None
        assert kernels.why_missing() == "were built from other sources than these"


def test_kernels_that_were_not_built_are_none(monkeypatch, none_loaded):
    monkeypatch.setattr(kernels, "find", lambda: None)
    assert kernels.library() is None
    assert kernels.why_missing() == "were not built"
