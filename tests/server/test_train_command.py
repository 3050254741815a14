"""`octavo train --tiny` ends in a model with its own tokenizer, and refuses in a sentence."""

import random
from pathlib import Path

import pytest

from octavo.model.config import ModelConfig
from octavo.server import cli
from octavo.server.text.new_tokenizer import END, files, train
from octavo.server.text.tokenizer import Tokenizer

SIZES = ["--hidden", "64", "--layers", "1", "--vocabulary", "300", "--length", "16", "--rows", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # This is no process of its own.


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    words = ["hello", "world", "tiny", "sparse", "model", "expert"]
    paragraphs = [" ".join(draw.choices(words, k=20)) for _ in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(paragraphs))
    return tmp_path / "text.txt"


@pytest.mark.parametrize("top_k", ["1", "2"])
def test_it_ends_in_a_model_and_both_curves(text: Path, capsys: pytest.CaptureFixture[str], top_k: str) -> None:
    out = text.with_name("out")
    arguments = ["train", "--tiny", "--text", str(text), "--out", str(out), "--top-k", top_k, "--steps", "3", *SIZES]
    assert cli.main(arguments) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n" and "the sparse model: 100 %, loss " in told.err and "dense twin" in told.err
    config = ModelConfig.from_pretrained(out)
    assert (config.num_experts, config.num_experts_per_tok, config.intermediate_size) == (
        8,
        int(top_k),
        256 // int(top_k),
    )
    tokenizer = Tokenizer.from_directory(out)
    ids = tokenizer.encode("hello world", add_special_tokens=True)
    assert len(ids) < 6 and tokenizer.decode_bytes(ids) == "hello world" and config.eos_token_ids == (0,)
    assert cli.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say so with --tiny"),
        (["--tiny", "--out", "x"], "give --text PATH and --out DIRECTORY"),
        (["--tiny", "--text", "x"], "give --text PATH and --out DIRECTORY"),
        (["--tiny", "--text", "/absent", "--out", "x"], "There is no file or folder /absent"),
        (["--tiny", "--text", "{text}", "--out", "x", "--hidden", "100"], "--hidden 100 is not a multiple of 64"),
        (["--tiny", "--text", "{text}", "--out", "x", "--top-k", "3", "--experts", "2"], "--top-k 3 is more than"),
        (["--tiny", "--text", "{short}", "--out", "{short}-out"], "The domain text has 1 different documents"),
    ],
)
def test_mistakes_are_sentences(
    text: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    short = text.with_name("short")
    short.write_text("This is the only paragraph of this file.")
    assert cli.main(["train", *(each.format(text=text, short=short) for each in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("octavo: ") and sentence in err and err.count("\n") == 1


def test_a_tokenizer_repeats_and_holds_every_byte() -> None:
    texts = ["the cat sat on the mat", "the dog"] * 5
    tokenizer = train(texts, 300)
    assert files(tokenizer) == files(train(texts, 300))
    assert tokenizer.get_vocab_size() <= 300 and tokenizer.token_to_id(END) == 0
    for strange in ("né 你 \x00\n", "the theatre"):
        assert tokenizer.decode(tokenizer.encode(strange).ids) == strange
