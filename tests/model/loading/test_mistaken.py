"""Whatever is given in place of a checkpoint is named, with what to give instead."""

from pathlib import Path

import pytest

from octavo.model.config import ModelError
from octavo.model.loading.mistaken import check_directory, check_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n"


def directory(path: Path, **files: str) -> Path:
    """Writes files, whose names have two underscores for a dot."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@pytest.mark.parametrize(
    "files",
    [
        {"config__json": "{}", "model__safetensors": "x"},
        {"config__json": "{}", "octavo-int8__tiles": "x"},
        {"config__json": "{}", "model__gguf": "x"},  # a directory made for a GGUF file
        {"config__json": "{}", "model__safetensors": "x", "also__gguf": "x", "adapter_config__json": "{}"},
        {"config__json": "{}", "model__safetensors": "x", "params__json": "{}", "chat_template__jinja": "<s>"},
        {"config__json": "{}", "pytorch_model__bin": "x"},  # It is refused where weights are opened.
        {},
    ],
)
def test_others_are_left_to_those_who_read_them(tmp_path: Path, files: dict[str, str]) -> None:
    check_directory(directory(tmp_path, **files))


@pytest.mark.parametrize("more", [{}, {"config__json": "{}"}])
def test_gguf_files_are_pointed_to(tmp_path: Path, more: dict[str, str]) -> None:
    directory(tmp_path, mmproj__gguf="x", b__gguf="x", a__gguf="x", **more)
    with pytest.raises(ModelError, match=f"give the path of one, such as {tmp_path / 'a.gguf'}"):
        check_directory(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"base_model_name_or_path": "owner/base"}', "its base model, owner/base, with PEFT's merge_and_unload"),
        ("{}", "its base model with PEFT's"),
        ("[", "its base model with PEFT's"),
        ('{"base_model_name_or_path": 3}', "its base model with PEFT's"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"config__json": "{}"}])
def test_an_adapter_is_named(tmp_path: Path, text: str, words: str, more: dict[str, str]) -> None:
    directory(tmp_path, adapter_config__json=text, adapter_model__safetensors="x", **more)
    with pytest.raises(ModelError) as caught:
        check_directory(tmp_path)
    assert words in str(caught.value) and "is an adapter (LoRA)" in str(caught.value)


def test_another_layout_is_named(tmp_path: Path) -> None:
    directory(tmp_path, params__json="{}", consolidated__safetensors="x")
    with pytest.raises(ModelError, match=r"has params.json, which is another layout of checkpoints"):
        check_directory(tmp_path)


@pytest.mark.parametrize("place", ["inner", "snapshots/0123"])
def test_the_directory_inside_is_pointed_to(tmp_path: Path, place: str) -> None:
    inner = directory(tmp_path / place, config__json="{}", model__safetensors="x")
    with pytest.raises(ModelError, match=f"and {inner} has one: give that path"):
        check_directory(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00002.safetensors", "model.gguf"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    directory(tmp_path, config__json="{}", model__safetensors="x", **{name: POINTER})
    with pytest.raises(ModelError, match=f"{name} is a pointer of git-lfs.*git lfs pull"):
        check_directory(tmp_path)


def test_a_web_page_is_named(tmp_path: Path) -> None:
    page = directory(tmp_path, x__gguf="<!DOCTYPE html>") / "x.gguf"
    with pytest.raises(ModelError, match=r"x.gguf is a web page"):
        check_file(page)


def test_a_file_that_cannot_be_read_is_left_to_those_who_need_it(tmp_path: Path) -> None:
    check_file(tmp_path / "gone.gguf")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    check_directory(tmp_path)
