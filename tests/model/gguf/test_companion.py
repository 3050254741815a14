"""The directory that serves a GGUF file is made once, and again when the file or the tokenizer is another."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from octavo.model.config import ModelConfig, ModelError
from octavo.model.generation_config import GenerationConfig
from octavo.model.gguf.companion import STAMP, Order, directory_for
from tests.model.gguf.writing import TEMPLATE, VOCABULARY, written
from tests.tiny import write_tiny_checkpoint


def file_in(directory: Path, **metadata: object) -> Path:
    checkpoint = write_tiny_checkpoint(directory, vocab_size=VOCABULARY)
    return written(checkpoint, lambda name: "F32", **metadata)


def test_it_has_all_that_is_served(tmp_path: Path) -> None:
    said = {"general.sampling.temp": 0.7, "general.sampling.top_k": 20}
    directory = directory_for(Order(file_in(tmp_path / "tiny", **said)), tmp_path / "cache")
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "generation_config.json",
        STAMP,
        "model.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert ModelConfig.from_pretrained(directory).num_experts == 4
    generation = GenerationConfig.from_pretrained(directory)
    assert (generation.temperature, generation.top_k, generation.eos_token_ids) == (0.7, 20, (2,))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE and config["bos_token"] == "<s>"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("abc ä").ids) == "abc ä"


def test_it_is_made_once(tmp_path: Path) -> None:
    file = file_in(tmp_path / "tiny")
    directory = directory_for(Order(file), tmp_path / "cache")
    (directory / "octavo-int8.tiles").touch()
    before = (directory / "config.json").stat().st_ino
    assert directory_for(Order(file), tmp_path / "cache") == directory
    assert (directory / "config.json").stat().st_ino == before
    file_in(tmp_path / "tiny", **{"general.sampling.temp": 0.5})
    directory_for(Order(file), tmp_path / "cache")
    assert json.loads((directory / "generation_config.json").read_text())["temperature"] == 0.5
    assert (directory / "octavo-int8.tiles").exists()  # A tile file knows by itself what it was made of.


def test_an_interrupted_one_is_made_again(tmp_path: Path) -> None:
    file = file_in(tmp_path / "tiny")
    directory = directory_for(Order(file), tmp_path / "cache")
    (directory / STAMP).unlink()
    (directory / "config.json").write_text("{")
    directory_for(Order(file), tmp_path / "cache")
    assert ModelConfig.from_pretrained(directory).num_experts == 4


def test_a_tokenizer_of_ones_own_is_taken_and_remembered(tmp_path: Path) -> None:
    plain = directory_for(Order(file_in(tmp_path / "one")), tmp_path / "cache")
    file = file_in(tmp_path / "two", **{"tokenizer.ggml.pre": "something new"})
    with pytest.raises(ModelError, match="--tokenizer"):
        directory_for(Order(file), tmp_path / "cache")
    own = tmp_path / "own"
    own.mkdir()
    (own / "tokenizer.json").write_text((plain / "tokenizer.json").read_text())
    directory = directory_for(Order(file, own), tmp_path / "cache")
    assert (directory / "tokenizer.json").read_text() == (own / "tokenizer.json").read_text()
    assert (directory / "chat_template.jinja").read_text() == TEMPLATE
    assert directory_for(Order(file), tmp_path / "cache") == directory
    (own / "tokenizer_config.json").write_text('{"chat_template": "other"}')
    file.touch()
    directory_for(Order(file), tmp_path / "cache")
    assert not (directory / "chat_template.jinja").exists()
    assert (directory / "tokenizer_config.json").read_text() == '{"chat_template": "other"}'


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    file = file_in(tmp_path / "tiny")
    order = Order(file, own)
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):
        directory_for(order, tmp_path / "cache")
    (own / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a readable tokenizer"):
        directory_for(order, tmp_path / "cache")
    right = (directory_for(Order(file), tmp_path / "cache") / "tokenizer.json").read_text()
    values = json.loads(right)
    values["model"]["vocab"] |= {"a": values["model"]["vocab"]["c"], "c": values["model"]["vocab"]["a"]}
    (own / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="its token .* is 'a', and to the tokenizer it is 'c'"):
        directory_for(order, tmp_path / "cache")


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", vocab_size=200)
    with pytest.raises(ModelError, match=f"has {VOCABULARY} tokens, and its embedding has 200 rows"):
        directory_for(Order(written(checkpoint, lambda name: "F32")), tmp_path / "cache")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone.gguf"):
        directory_for(Order(tmp_path / "gone.gguf"), tmp_path / "cache")
