"""Text to token ids and back: Tokenizer, and Detokenizer, which does it one token at a time."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers.decoders import DecodeStream

from octavo.server.http.errors import StartupError
from octavo.server.text.template import ChatTemplate

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A checkpoint's tokenizer.json and, where it has one, its chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None = None) -> None:
        backend.no_truncation()  # a tokenizer.json saved while training may carry both
        backend.no_padding()
        self.backend = backend
        self.template = template
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1  # ids are below this; they may have gaps
        self.anchor = _anchor(backend)
        added = backend.get_added_tokens_decoder()
        self._added = {id: token.content.encode() for id, token in added.items()}
        self._special = {id for id, token in added.items() if token.special}
        decoder = json.loads(backend.to_str())["decoder"]
        kinds = set(_decoder_kinds(decoder))
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._metaspace = "▁" in json.dumps(decoder, ensure_ascii=False)  # which then stands for a space

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Raises StartupError when the tokenizer or its template is missing or broken."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise StartupError(f"{directory} has no tokenizer.json; save the checkpoint with its (fast) tokenizer.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise StartupError(f"{path} is not a readable tokenizer ({error}); fetch or save it again.") from error
        return cls(backend, ChatTemplate.from_directory(directory))

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """Special tokens are those of the post-processor, a BOS as a rule; a chat template brings its own.

        As a batch of one, because that releases the GIL and `encode` does not: a prompt of megabytes takes seconds.
        """
        return tuple(self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode_bytes(self, ids: Sequence[int]) -> str:
        """The text of ids by their bytes alone, U+FFFD where these are no UTF-8; leading spaces are kept."""
        return b"".join(self.token_bytes(id) for id in ids if id not in self._special).decode(errors="replace")

    def added_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """The ids of those of the texts that are tokens beside the vocabulary proper, special ones as a rule."""
        wanted = {text.encode(): text for text in texts}
        return {wanted[content]: id for id, content in self._added.items() if content in wanted}

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for: of a character that was split, its true part."""
        if id in self._added:
            return self._added[id]
        token = self.backend.id_to_token(id) or ""
        if self._byte_level:
            return b"".join(_BYTE_OF.get(character, character.encode()) for character in token)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return (token.replace("▁", " ") if self._metaspace else token).encode()

    def token_text(self, id: int) -> str:
        """A name for one token, in log-probabilities: its text or, where that is no UTF-8, `bytes:\\xe4\\xbd`."""
        data = self.token_bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Detokenizer:
    """The text of one choice, token by token; the join of what it returns is the choice's text.

    DecodeStream alone has no flush, loses the first space of a Llama-style vocabulary, repeats the prompt when that
    ends within a character, raises on some byte sequences, and takes quadratic time while it holds bytes that never
    become a character. Hence the seed, and the bounded `held`.
    """

    SEED = 6  # ids of the prompt that the first token is decoded after
    MAX_HELD = 16  # tokens; no character has so many bytes

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], shown: frozenset[int] = frozenset()) -> None:
        """shown: special tokens that are part of the text, which others never are."""
        self._tokenizer = tokenizer
        self._shown = shown
        self._held: list[int] = []  # tokens whose text has not been returned
        self._stream = DecodeStream(ids=self._seed(prompt[-self.SEED :]), skip_special_tokens=True)

    def _seed(self, ids: Sequence[int]) -> list[int]:
        for end in range(len(ids), 0, -1):
            if not self._tokenizer.backend.decode(list(ids[:end])).endswith("\ufffd"):
                return list(ids[:end])
        return list(self._tokenizer.anchor)

    def push(self, id: int) -> str:
        """The text that has become certain; "" while a character is incomplete."""
        if id in self._shown:
            return self.flush() + self._tokenizer.token_bytes(id).decode()
        self._held.append(id)
        try:
            text = self._stream.step(self._tokenizer.backend, id)
        except Exception:  # "Invalid prefix encountered", of no narrower type
            return self.flush()
        if text is None:
            return self.flush() if len(self._held) >= self.MAX_HELD else ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """The text of what is held, complete or not, as if nothing followed; then starts anew."""
        text = self._tokenizer.decode_bytes(self._held)
        self._held.clear()
        self._stream = DecodeStream(ids=list(self._tokenizer.anchor), skip_special_tokens=True)
        return text


def _anchor(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """An id whose text is one plain letter in any surroundings: what follows it is decoded as mid-text."""
    candidates = (backend.token_to_id(letter) for letter in "aexo")
    found = next((id for id in candidates if id is not None and len(backend.decode([id])) == 1), None)
    return () if found is None else (found,)


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _decoder_kinds(part)


def _byte_alphabet() -> dict[str, bytes]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's): itself where it is printable,
    else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
