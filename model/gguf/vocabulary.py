"""Makes a tokenizer of the vocabulary in a file's metadata, and compares tokenizers with that vocabulary.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as shortened
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel

from octavo.model.gguf.fields import Fields
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.pre_tokenizers import CUTTINGS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # of token_type
SPACE = "▁"
MOST_PIECE = 512  # letters; SentencePiece makes no longer ones
HINT = "give the model's own tokenizer with --tokenizer DIRECTORY"

# Ids that end an answer, by their keys; and tokens that do in every model that has them, as llama.cpp has it, too.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_ENDING_TEXTS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "<EOT>")
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


@dataclass(frozen=True)
class Vocabulary:
    """A Vocabulary is what the metadata say about tokens. An id is a token's place in the list."""

    fields: Fields
    tokens: list[str]
    types: list[int]

    @classmethod
    def of(cls, model: GgufModel) -> "Vocabulary":
        """Raises ModelError."""
        fields = Fields(model.paths[0], model.metadata, "tokenizer.ggml.")
        tokens = fields.items("tokens", str)
        types = fields.items("token_type", int, [NORMAL] * len(tokens))
        if not tokens or len(types) != len(tokens):
            raise fields.error(f"it has {len(tokens)} tokens and {len(types)} types of tokens")
        return cls(fields, tokens, types)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}

    def named(self) -> dict[str, str]:
        """Returns bos_token and so on, as tokenizer_config.json has them."""
        found = {name: self._token(f"{key}_token_id") for key, name in _NAMED.items()}
        return {name: token for name, token in found.items() if token is not None}

    def ends(self) -> list[int]:
        """Returns the ids of tokens that end an answer; the first is the EOS."""
        named = [self.ids[token] for key in _ENDS if (token := self._token(key)) is not None]
        by_text = [
            self.ids[text]
            for text in _ENDING_TEXTS
            if self.types[self.ids.get(text, 0)] == CONTROL and text in self.ids
        ]
        return list(dict.fromkeys(named + by_text))

    def tokenizer(self) -> Tokenizer:
        """Raises ModelError for a vocabulary of another kind, and for one that contradicts itself."""
        if twice := next((token for token, count in Counter(self.tokens).items() if count > 1), None):
            raise self.fields.error(f"the token {shortened(twice)} is there twice", HINT)
        match self.fields.text("model"):
            case "llama":
                made = self._sentencepiece()
            case "gpt2":
                made = self._byte_level()
            case other:
                raise self.fields.error(f"its vocabulary is of the kind {shortened(other)}", HINT)
        made.add_special_tokens(self._added(CONTROL, UNKNOWN))
        made.add_tokens(self._added(USER_DEFINED))
        self.check(made)
        return made

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises ModelError unless each id means the same token to the tokenizer as to the file."""
        for id, token in enumerate(self.tokens):
            found = tokenizer.id_to_token(id)
            if found != token and self.types[id] != UNUSED and (found or "").replace(SPACE, " ") != token:
                raise self.fields.error(
                    f"its token {id} is {shortened(token)}, and to the tokenizer it is {shortened(found)}"
                )

    def _token(self, key: str) -> str | None:
        """Returns the token whose id the metadata give; None where they give none."""
        id = self.fields.get(key)
        if id is None:
            return None
        if type(id) is not int or not 0 <= id < len(self.tokens):
            raise self.fields.error(
                f"{self.fields.prefix}{key} is {shortened(id)}, and there are {len(self.tokens)} tokens"
            )
        return self.tokens[id]

    def _of(self, *types: int) -> Iterable[tuple[int, str]]:
        return ((id, token) for id, token in enumerate(self.tokens) if self.types[id] in types)

    def _added(self, *types: int) -> list[AddedToken]:
        special = USER_DEFINED not in types
        return [AddedToken(token, special=special, normalized=False) for _, token in self._of(*types) if token]

    def _sentencepiece(self) -> Tokenizer:
        """Returns a tokenizer that merges by scores, as SentencePiece's BPE does."""
        for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
            if self.fields.get(name):
                raise self.fields.error(f"{self.fields.prefix}{name} is set", HINT)
        scores = self.fields.items("scores", float)
        if len(scores) != len(self.tokens):
            raise self.fields.error(f"it has {len(self.tokens)} tokens and {len(scores)} scores")
        bytes_there = {token for _, token in self._of(BYTE)}
        fallback = all(f"<0x{byte:02X}>" in bytes_there for byte in range(256))
        unknown = self._token("unknown_token_id") or next((token for _, token in self._of(UNKNOWN)), None)
        if unknown is None and not fallback:
            raise self.fields.error("it has neither tokens for all bytes nor one for unknown characters", HINT)
        pieces = {token: scores[id] for id, token in self._of(NORMAL)}
        if longest := next((piece for piece in pieces if len(piece) > MOST_PIECE), None):
            raise self.fields.error(f"the token {shortened(longest)} has {len(longest)} letters: {HINT}")
        made = Tokenizer(
            models.BPE(self.ids, merges_of(pieces, self.ids), unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
        )
        prefix = self.fields.flag("add_space_prefix", True)
        spaces = normalizers.Replace(" ", SPACE)
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
        parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
        self._add_ends(made, begins=True)
        return made

    def _byte_level(self) -> Tokenizer:
        """Returns a tokenizer of bytes that merges by rank, as GPT-2's does."""
        name = self.fields.text("pre", "")
        if name not in CUTTINGS:
            what = f"is {shortened(name)}, which is unknown here" if name else "is missing"
            raise self.fields.error(f"{self.fields.prefix}pre {what}", HINT)
        if absent := [byte for byte in ByteLevel.alphabet() if byte not in self.ids]:
            raise self.fields.error(f"its vocabulary lacks {len(absent)} of 256 bytes", HINT)
        cutting, merges = CUTTINGS[name], self._merges()
        made = Tokenizer(models.BPE(self.ids, merges, ignore_merges=cutting.whole_words))
        if (normalizer := cutting.normalizer()) is not None:
            made.normalizer = normalizer
        made.pre_tokenizer = cutting.pre_tokenizer()
        made.decoder = decoders.ByteLevel()
        self._add_ends(made, begins=cutting.begins)
        return made

    def _merges(self) -> list[tuple[str, str]]:
        merges = []
        for merge in self.fields.items("merges", str):
            left, _, right = merge[1:].partition(" ")
            left = merge[:1] + left
            if left not in self.ids or right not in self.ids or left + right not in self.ids:
                raise self.fields.error(f"the merge {shortened(merge)} is not one of two tokens into a third")
            merges.append((left, right))
        return merges

    def _add_ends(self, made: Tokenizer, begins: bool) -> None:
        """Lets the tokenizer put a BOS before each text and an EOS behind it, where the metadata ask for them."""
        bos = self._token("bos_token_id") if self.fields.flag("add_bos_token", begins) else None
        eos = self._token("eos_token_id") if self.fields.flag("add_eos_token", False) else None
        # A template has words of its own for both, because a token such as "a:b" would mean something else in it.
        special: list[Any] = [
            {"id": word, "ids": [self.ids[token]], "tokens": [token]}
            for word, token in (("BOS", bos), ("EOS", eos))
            if token is not None
        ]
        if special:
            before, after = [] if bos is None else ["BOS"], [] if eos is None else ["EOS"]
            made.post_processor = processors.TemplateProcessing([*before, "$A", *after], special_tokens=special)


def merges_of(pieces: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the merges that make pieces of two others, the highest score first.

    SentencePiece merges the two neighbours whose piece has the highest score. transformers finds the merges of a
    vocabulary in this way, too (SentencePieceExtractor in convert_slow_tokenizer.py).
    """
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces.items():
        for n in range(1, len(piece)):
            left, right = piece[:n], piece[n:]
            if left in pieces and right in pieces:
                found.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
