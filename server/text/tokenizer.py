"""A Tokenizer turns text into token ids and back; a Detokenizer turns ids into text one token at a time."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers.decoders import DecodeStream

from octavo.server.http.errors import StartupError
from octavo.server.http.wire import clean
from octavo.server.text.alphabet import BYTE_OF
from octavo.server.text.bounds import bound_of
from octavo.server.text.special_tokens import SpecialTokens
from octavo.server.text.template import ChatTemplate
from octavo.server.text.traced import Traced
from octavo.server.text.traced_encoder import TracedEncoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Holds a checkpoint's tokenizer.json and, if it has one, its chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None = None) -> None:
        backend.no_truncation()  # a tokenizer.json that was saved in training may ask for both
        backend.no_padding()
        self.backend = backend
        self.added_tokens: tuple[str, ...] = ()  # what tokenizer.json lacks, each a JSON object
        self.directory: Path | None = None  # where another process can read it again
        self.bound = bound_of(json.loads(backend.to_str()))
        self.template = template
        self._traced = TracedEncoder(backend)
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
        self._metaspace = "▁" in json.dumps(decoder, ensure_ascii=False)  # "▁" then stands for a space

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Reads a checkpoint's tokenizer. Raises StartupError if it is missing, or if it or its template is broken."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise StartupError(
                f"{directory} has no tokenizer.json; download it, or save the checkpoint with its (fast) tokenizer."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise StartupError(f"{path} is not a readable tokenizer ({error}); fetch or save it again.") from error
        added = SpecialTokens.from_directory(directory).complete(backend)
        tokenizer = cls(backend, ChatTemplate.from_directory(directory))
        tokenizer.added_tokens = added
        tokenizer.directory = directory
        return tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """Encodes text. Special tokens are those of the post-processor, usually a BOS; a chat template has its own.

        The text of a special token becomes that token. In a Traced text it does only where the template wrote it.

        The text is a batch of one, because encoding a batch releases the GIL and encoding a text does not. A prompt of
        megabytes takes seconds.
        """
        if isinstance(text, Traced):
            return self._traced.encode(text, add_special_tokens)
        return tuple(self.backend.encode_batch_fast([clean(text)], add_special_tokens=add_special_tokens)[0].ids)

    def encode_rendered(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """Encodes what a chat template has written. Special tokens that it wrote itself are not added again."""
        ids = self.encode(text, add_special_tokens=False)
        if not add_special_tokens:
            return ids
        before, after = self._traced.before, self._traced.after
        begins, ends = ids[: len(before)] == before, ids[len(ids) - len(after) :] == after
        return (*(() if begins else before), *ids, *(() if ends else after))

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Returns bos_token and so on, by the names that chat templates use."""
        return {} if self.template is None else self.template.special_tokens

    def decode_bytes(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids' bytes, with U+FFFD for invalid UTF-8, and with leading spaces."""
        return b"".join(self.token_bytes(id) for id in ids if id not in self._special).decode(errors="replace")

    def added_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Returns the ids of those texts that are added tokens, which are usually special ones."""
        wanted = {text.encode(): text for text in texts}
        return {wanted[content]: id for id, content in self._added.items() if content in wanted}

    def special_text(self, id: int) -> str:
        """Returns the text of a special token, which decoding leaves out; "" for any other token."""
        return self._added[id].decode() if id in self._special else ""

    def token_bytes(self, id: int) -> bytes:
        """Returns the bytes that a token stands for, also if they are only a part of a character."""
        if id in self._added:
            return self._added[id]
        token = self.backend.id_to_token(id) or ""
        if self._byte_level:
            return b"".join(BYTE_OF.get(character, character.encode()) for character in token)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return (token.replace("▁", " ") if self._metaspace else token).encode()

    def token_text(self, id: int, marker: str = "bytes:") -> str:
        """Returns a name for one token: its text or, if that is no UTF-8, the marker and its bytes, as \\xe4\\xbd."""
        data = self.token_bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return marker + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in data)


class Detokenizer:
    """Returns the text of one choice piece by piece; the pieces together are the choice's text.

    The seed and the bound on held tokens make up for what DecodeStream lacks: alone it has no flush, loses the first
    space of a Llama-style vocabulary, repeats the prompt when that ends within a character, raises on some byte
    sequences, and takes quadratic time while it holds bytes that never become a character.
    """

    SEED = 6  # ids; so many of the prompt's last ones precede the first token in the decoder
    MAX_HELD = 16  # tokens; no character has so many bytes

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], shown: frozenset[int] = frozenset()) -> None:
        """`shown` are the special tokens whose text is part of the answer; the text of others never is."""
        self._tokenizer = tokenizer
        self._shown = shown
        self._held: list[int] = []  # ids whose text has not been returned
        self._stream = DecodeStream(ids=self._seed(prompt[-self.SEED :]), skip_special_tokens=True)

    def _seed(self, ids: Sequence[int]) -> list[int]:
        for end in range(len(ids), 0, -1):
            if not self._tokenizer.backend.decode(list(ids[:end])).endswith("\ufffd"):
                return list(ids[:end])
        return list(self._tokenizer.anchor)

    def push(self, id: int) -> str:
        """Returns the text that has become certain, which is "" while a character is incomplete."""
        if id in self._shown:
            return self.flush() + self._tokenizer.token_bytes(id).decode()
        self._held.append(id)
        try:
            text = self._stream.step(self._tokenizer.backend, id)
        except Exception:  # tokenizers says "Invalid prefix encountered", and raises nothing narrower
            return self.flush()
        if text is None:
            return self.flush() if len(self._held) >= self.MAX_HELD else ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """Returns the text of the held tokens, complete or not, and starts anew."""
        text = self._tokenizer.decode_bytes(self._held)
        self._held.clear()
        self._stream = DecodeStream(ids=list(self._tokenizer.anchor), skip_special_tokens=True)
        return text


def _anchor(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Returns an id whose text is one letter wherever it stands, so that what follows is decoded as in mid-text."""
    candidates = (backend.token_to_id(letter) for letter in "aexo")
    found = next((id for id in candidates if id is not None and len(backend.decode([id])) == 1), None)
    return () if found is None else (found,)


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _decoder_kinds(part)
