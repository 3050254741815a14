"""The tokenizer of the models of random weights: lossless, and every id that a model may choose is text."""

from pathlib import Path

from benchmarks.common.tokenizer import BOS, BYTES, TEMPLATE, tokenizer, vocabulary
from octavo.server.text.tokenizer import Tokenizer

TEXT = "Grüße, 你好! the quick brown fox"


def test_text_comes_back() -> None:
    backend = tokenizer(32000)
    encoding = backend.encode(TEXT)
    assert encoding.ids[0] == BOS
    assert backend.decode(encoding.ids) == TEXT
    assert len(encoding.ids) < len(TEXT.encode())


def test_every_id_is_text_of_its_own() -> None:
    tokens = vocabulary(32000)
    assert len(set(tokens)) == len(tokens) == 32000
    backend = tokenizer(32000)
    assert backend.get_vocab_size() == 32000
    assert backend.decode([31999]).strip().isalpha()
    assert "" not in [backend.decode([id]) for id in range(BYTES, 32000, 97)]


def test_the_server_reads_it(tmp_path: Path) -> None:
    tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "' + TEMPLATE.replace("\n", "\\n") + '"}')
    assert Tokenizer.from_directory(tmp_path).vocab_size == 300
