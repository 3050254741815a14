"""Grammars are compiled with the tokens that other files add to tokenizer.json."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler, mask_of
from octavo.engine.config import EngineConfig
from tests.server.vocab import byte_level

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
END = 259


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    added = ({"id": END, "content": "<end>"} | FLAGS, {"id": 2, "content": "</s>"} | FLAGS | {"special": False})
    return EngineConfig(str(tmp_path), added_tokens=tuple(map(json.dumps, added)))


def test_the_tokenizer_is_complete(config: EngineConfig) -> None:
    tokenizer = Tokenizer.from_str(config.tokenizer.read_text("utf-8"))
    assert tokenizer.token_to_id("<end>") == END
    assert not tokenizer.get_added_tokens_decoder()[2].special
    plain = EngineConfig(config.model)
    assert plain.tokenizer.read_text("utf-8") == plain.tokenizer.path.read_text("utf-8")


def test_a_grammar_ends_with_the_token_that_was_added(config: EngineConfig) -> None:
    matcher = Compiler(config.tokenizer, (END,)).compile(Grammar("regex", "a*"))
    mask = mask_of(matcher)
    assert mask[END // 8] >> END % 8 & 1
    assert mask[(3 + ord("a")) // 8] >> (3 + ord("a")) % 8 & 1
