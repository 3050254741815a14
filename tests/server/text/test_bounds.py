"""No prompt that fits is refused unencoded, whatever kind of tokenizer the checkpoint has."""

import json
import sys
import unicodedata
from random import Random

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.server.text import length
from octavo.server.text.bounds import bound_of
from octavo.server.text.length import ending, exceeds
from octavo.server.text.tokenizer import Tokenizer
from tests.server.vocab import byte_level, llama_style

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *"abcdefgh .,\n", "ab", "abc", "▁a", "▁ab", "é", "你"]
WORDS = ("abc ", "a", " ", "\n\n", "zzzz", "ABC", "12345678", "A" * 50, "\x04", "</s>")
TEXTS = (*WORDS, "é", "你好", "x̂", "\U0001f600", "ＡＢ", "각")


def bpe(**options: object) -> Backend:
    pieces = ["<unk>", *BYTES, *LETTERS]
    merges = [("a", "b"), ("ab", "c"), ("▁", "a"), ("▁a", "b")]
    return Backend(models.BPE({piece: id for id, piece in enumerate(pieces)}, merges, unk_token="<unk>", **options))


def lacking(*parts: object) -> Backend:
    """Makes a byte-level vocabulary without some bytes, as SmolLM2's: they give no tokens."""
    document = json.loads(byte_level(None).backend.to_str())
    vocabulary = document["model"]["vocab"]
    kept = [token for token in vocabulary if token not in {"a", "\u0104", "\u0126", "<unk>"}]
    backend = Backend(models.BPE({token: id for id, token in enumerate(kept)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if parts:
        backend.normalizer = normalizers.Sequence(list(parts))
    return backend


def unigram(byte_fallback: bool) -> Backend:
    pieces = [("<unk>", 0.0), *((piece, -9.0) for piece in BYTES), *((piece, -2.0) for piece in LETTERS)]
    return Backend(models.Unigram(pieces, 0, byte_fallback))


def wordpiece() -> Backend:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "abc": 3}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def normalised(*parts: object) -> Backend:
    backend = byte_level(None).backend
    backend.normalizer = normalizers.Sequence(list(parts))
    return backend


def eating() -> Backend:
    backend = byte_level(None).backend
    backend.add_special_tokens([AddedToken("<eat>", lstrip=True, rstrip=True)])
    return backend


def splitting(behavior: str) -> Backend:
    backend = bpe(byte_fallback=True)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior)
    return backend


BACKENDS = {
    "byte-level BPE": lambda: byte_level(None).backend,
    "byte-level BPE that lacks bytes": lacking,
    "the same behind a normaliser": lambda: lacking(normalizers.Lowercase()),
    "BPE with byte fallback": lambda: llama_style().backend,
    "BPE as Mixtral's": lambda: bpe(byte_fallback=True, fuse_unk=True),
    "BPE with an unknown token a character": lambda: bpe(),
    "BPE with fused unknown tokens": lambda: bpe(fuse_unk=True),
    "Unigram with byte fallback": lambda: unigram(True),
    "Unigram with fused unknown tokens": lambda: unigram(False),
    "WordPiece": wordpiece,
    "NFC": lambda: normalised(normalizers.NFC()),
    "NFKC and lower case": lambda: normalised(normalizers.NFKC(), normalizers.Lowercase()),
    "a space becomes a mark": lambda: normalised(normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")),
    "text is stripped": lambda: normalised(normalizers.Strip()),
    "accents are stripped": lambda: normalised(normalizers.NFD(), normalizers.StripAccents()),
    "spaces are joined": lambda: normalised(normalizers.Replace(Regex(" +"), " ")),
    "an added token eats spaces": eating,
    "spaces are removed": lambda: splitting("removed"),
    "spaces are kept": lambda: splitting("isolated"),
}
BOUNDED = {
    "byte-level BPE",
    "byte-level BPE that lacks bytes",
    "BPE with byte fallback",
    "BPE as Mixtral's",
    "BPE with an unknown token a character",
    "Unigram with byte fallback",
    "NFC",
    "NFKC and lower case",
    "a space becomes a mark",
    "spaces are kept",
}


@pytest.mark.parametrize("name", BACKENDS)
def test_no_text_that_fits_exceeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "SHORT", 50)  # so that short texts are looked at as long ones are
    monkeypatch.setattr(length, "PIECE", 700)
    tokenizer, random = Tokenizer(BACKENDS[name]()), Random(name)
    texts = [random.choice(TEXTS) * random.randrange(1, 3000) for _ in range(30)]
    texts += ["".join(random.choices(TEXTS, k=random.randrange(1, 3000))) for _ in range(30)]
    for text in texts:
        tokens = len(tokenizer.encode(text, add_special_tokens=False))
        assert not exceeds(tokenizer, text, tokens), (name, text[:50], tokens)


@pytest.mark.parametrize("name", BACKENDS)
def test_which_tokens_have_a_bound(name: str) -> None:
    bound = bound_of(json.loads(BACKENDS[name]().to_str()))
    assert (bound is not None) == (name in BOUNDED)


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_an_end_has_the_tokens_that_are_kept(name: str) -> None:
    tokenizer, random = Tokenizer(BACKENDS[name]()), Random(name)
    text = "".join(random.choices(TEXTS, k=20_000))
    whole = tokenizer.encode(text, add_special_tokens=False)
    cut = ending(tokenizer, text, 100)
    assert len(cut) < len(text) / 2
    assert tokenizer.encode(cut, add_special_tokens=False)[-100:] == whole[-100:]


@pytest.mark.parametrize("name", ["byte-level BPE", "BPE with fused unknown tokens", "WordPiece"])
def test_what_is_far_too_long_is_found(name: str) -> None:
    assert exceeds(Tokenizer(BACKENDS[name]()), "abc " * 100_000, 10_000)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("NFC", normalizers.NFC()),
        ("NFD", normalizers.NFD()),
        ("NFKC", normalizers.NFKC()),
        ("NFKD", normalizers.NFKD()),
        ("Lowercase", normalizers.Lowercase()),
    ],
)
def test_no_normaliser_shortens_more_than_is_said(name: str, normal: normalizers.Normalizer) -> None:
    """Every character alone, every pair that is written as one, and Hangul in three letters."""
    document = {"model": json.loads(byte_level(None).backend.to_str())["model"], "normalizer": {"type": name}}
    document["pre_tokenizer"] = {"type": "ByteLevel"}
    plain, bound = bound_of(document | {"normalizer": None}), bound_of(document)
    assert plain is not None and bound is not None
    most = bound.size // plain.size
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    texts = [
        *characters,
        *filter(None, (unicodedata.normalize("NFD", each) for each in characters)),
        "\u1100\u1161\u11a8",
    ]
    for text in texts:
        if text != (shorter := normal.normalize_str(text)):
            assert len(text.encode()) <= most * len(shorter.encode()), (name, ascii(text))
