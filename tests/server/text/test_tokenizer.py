"""Tokenizer and Detokenizer lose, double and invent no character on the way from ids to text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from octavo.server.http.errors import StartupError
from octavo.server.text.tokenizer import Detokenizer, Tokenizer
from tests.server.vocab import BOS, BYTES, EOS, PIECES, byte_level, ids_of, llama_style, piece

BYTE_LEVEL, LLAMA = byte_level(), llama_style()
WORDS = [piece(text) for text in PIECES]
TEXT = "naïve “quotes” 你好世界 🦑👩‍👩‍👧 \u0301e\u0301 é\n\t  end "


def pushed(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA], ids=["byte level", "llama"])
def test_text_survives_byte_by_byte(tokenizer: Tokenizer) -> None:
    parts = pushed(tokenizer, [BOS, *ids_of("hi")], ids_of(TEXT))
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text())
def test_any_text_survives(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, LLAMA):
        assert "".join(pushed(tokenizer, ids_of("x"), ids_of(text))) == text


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *ids_of("a\n \x80\xffé你🦑"), BOS, EOS]), max_size=40))
def test_random_ids_of_a_llama_vocabulary(ids: list[int]) -> None:
    """Its decoder turns a whole run of bytes into U+FFFD if one of them is wrong, but no word is lost or invented."""
    text = "".join(pushed(LLAMA, ids_of("x"), ids))
    words = "".join(LLAMA.token_text(id) for id in ids if id in WORDS)
    exact = LLAMA.decode_bytes(ids)
    assert is_subsequence(words, text)
    assert is_subsequence(text.replace("\ufffd", ""), exact)
    assert text == exact or "\ufffd" in exact


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=15))
def test_random_bytes_as_decode_gives_them(ids: list[int]) -> None:
    assert "".join(pushed(BYTE_LEVEL, ids_of("x"), ids)) == BYTE_LEVEL.backend.decode(ids)


def is_subsequence(short: str, long: str) -> bool:
    characters = iter(long)
    return all(character in characters for character in short)


def test_the_first_leading_space_is_kept() -> None:
    assert pushed(LLAMA, ids_of("x"), [piece("▁Hello"), piece("▁world")]) == [" Hello", " world", ""]


def test_a_prompt_that_ends_within_a_character_is_not_repeated() -> None:
    start, *rest = ids_of("你")
    for tokenizer in (BYTE_LEVEL, LLAMA):
        text = "".join(pushed(tokenizer, [*ids_of("secret"), start], [*rest, *ids_of("ok")]))
        assert "secret" not in text and text.endswith("ok")


def test_special_tokens_are_no_text() -> None:
    assert "".join(pushed(BYTE_LEVEL, ids_of("x"), [BOS, *ids_of("a"), EOS])) == "a"


def test_bytes_that_never_become_a_character_are_not_held_for_long() -> None:
    parts = pushed(LLAMA, ids_of("x"), [BYTES + 0x80] * 100)
    assert "".join(parts) == "\ufffd" * 100
    assert all(any(parts[i : i + Detokenizer.MAX_HELD]) for i in range(0, 96, Detokenizer.MAX_HELD))


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    assert pushed(BYTE_LEVEL, ids_of("x"), ids_of("a🦑")[:-1]) == ["a", "", "", "", "\ufffd"]


def test_a_literal_replacement_character_survives() -> None:
    assert "".join(pushed(BYTE_LEVEL, ids_of("x"), ids_of("a\ufffdb\ufffd"))) == "a\ufffdb\ufffd"


def test_true_bytes_and_names_of_tokens() -> None:
    assert [BYTE_LEVEL.token_bytes(id) for id in ids_of("é ")] == [b"\xc3", b"\xa9", b" "]
    assert BYTE_LEVEL.token_text(ids_of("é")[0]) == "bytes:\\xc3"
    assert LLAMA.token_bytes(piece("▁Hello")) == b" Hello"
    assert LLAMA.token_bytes(piece("你")) == "你".encode()
    assert LLAMA.token_bytes(BYTES + 0xE4) == b"\xe4"
    assert BYTE_LEVEL.token_text(EOS) == "</s>"
    assert BYTE_LEVEL.token_bytes(100_000) == b""


def test_encoding_with_and_without_bos() -> None:
    assert BYTE_LEVEL.encode("hi", add_special_tokens=True) == (BOS, *ids_of("hi"))
    assert BYTE_LEVEL.encode("<s>hi", add_special_tokens=False) == (BOS, *ids_of("hi"))
    assert BYTE_LEVEL.vocab_size == BYTES + 256


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    backend = Backend.from_str(byte_level().backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    assert Tokenizer(backend).encode("longer text", add_special_tokens=False) == tuple(ids_of("longer text"))


def test_from_directory(tmp_path: Path) -> None:
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.template is None
    assert tokenizer.encode("hi", add_special_tokens=False) == tuple(ids_of("hi"))


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(StartupError, match="not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)
