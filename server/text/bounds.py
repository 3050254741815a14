"""Finds how many bytes of text one token can stand for, so that a text that is far too long is known by its length."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from octavo.server.text.alphabet import BYTE_OF

Part = Mapping[str, Any]  # a part of tokenizer.json

# The most by which a normaliser shortens UTF-8: three letters of Hangul become one syllable, a full-width letter a
# plain one. Those that are not listed may remove text.
_SHRINKING = {"Prepend": 1, "ByteLevel": 1, "NFD": 3, "NFC": 3, "Lowercase": 3, "NFKD": 4, "NFKC": 4}
_KEEPING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts")  # pre-tokenizers that remove nothing
_BYTES = 256


@dataclass(frozen=True, slots=True)
class Bound:
    """A Bound is how many bytes of UTF-8 one token can stand for at most, beside bytes that give no tokens at all."""

    size: int
    lost: bytes = b""  # Some byte-level vocabularies lack a few bytes, such as those of control characters.

    def least_tokens(self, text: str) -> int:
        """Returns a number of tokens that the text surely has."""
        counted = text.encode(errors="replace").translate(None, self.lost)
        return -(-len(counted) // self.size)


def bound_of(tokenizer: Part) -> Bound | None:
    """Returns the Bound of a tokenizer; None where there is none.

    There is none where text is removed, or where one token stands for all that the vocabulary lacks. `tokenizer` is the
    document of tokenizer.json.
    """
    added = tokenizer.get("added_tokens") or []
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    normalizers, splitters = list(_parts(tokenizer.get("normalizer"))), list(_parts(tokenizer.get("pre_tokenizer")))
    shrinking = [_shrinking(part) for part in normalizers]
    if None in shrinking or not all(_keeps_text(part) for part in splitters):
        return None
    byte_level = any(part["type"] == "ByteLevel" for part in (*normalizers, *splitters))
    vocabulary = _vocabulary(tokenizer["model"])
    lost = bytes(byte for character, (byte,) in BYTE_OF.items() if byte_level and character not in vocabulary)
    if not _knows_all(tokenizer["model"], vocabulary, byte_level) or (lost and normalizers):
        return None
    longest = max((len(token) if byte_level else len(token.encode()) for token in vocabulary), default=0)
    marked = max((len(token["content"].encode()) for token in added), default=0)
    return Bound(max(longest, marked, 4) * prod(factor for factor in shrinking if factor is not None), lost)


def _parts(part: Part | None) -> Iterator[Part]:
    """Yields a part, or the parts of a sequence."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for member in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
        yield from _parts(member)


def _shrinking(normalizer: Part) -> int | None:
    if normalizer["type"] != "Replace":
        return _SHRINKING.get(normalizer["type"])
    pattern, content = normalizer["pattern"].get("String"), normalizer["content"]
    if not pattern or not content:
        return None
    return -(-len(pattern.encode()) // len(content.encode()))


def _keeps_text(splitter: Part) -> bool:
    if splitter["type"] in ("Split", "Punctuation"):
        return splitter.get("behavior") != "Removed"
    return splitter["type"] in _KEEPING


def _vocabulary(model: Part) -> frozenset[str]:
    vocabulary = model.get("vocab") or ()
    if isinstance(vocabulary, Mapping):
        return frozenset(vocabulary)
    return frozenset(token for token, _ in vocabulary)


def _knows_all(model: Part, vocabulary: frozenset[str], byte_level: bool) -> bool:
    """Returns whether each character has tokens: its own, those of its bytes, or one unknown token for it alone.

    A byte that a byte-level vocabulary lacks is lost if there is no unknown token.
    """
    if model["type"] not in ("BPE", "Unigram"):
        return False  # one unknown token stands for a whole word
    if byte_level and (model["type"] == "BPE" and not model.get("unk_token")):
        return True
    if byte_level and BYTE_OF.keys() <= vocabulary:
        return True
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(_BYTES)):
        return True
    return model["type"] == "BPE" and bool(model.get("unk_token")) and not model.get("fuse_unk")
