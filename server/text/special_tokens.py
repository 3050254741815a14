"""Finds the tokens that a checkpoint's files name beside tokenizer.json, and adds those that it lacks.

tokenizer_config.json names special tokens and, as added_tokens_decoder, tokens with their ids. Without the latter it is
an older checkpoint, which may have special_tokens_map.json and added_tokens.json besides. This is how transformers
reads them (PreTrainedTokenizerBase._from_pretrained), with one difference: transformers gives a token the next free id,
whatever the files say, and here that is refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer

from octavo.server.http.errors import StartupError
from octavo.server.text.checkpoint_files import read_object

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NUMBERED = "added_tokens_decoder"
EXTRA = "extra_special_tokens", "additional_special_tokens"  # its name now, and before
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Holds the tokens that the files beside tokenizer.json name."""

    directory: Path
    named: Mapping[str, AddedToken] = field(default_factory=dict)  # bos_token and so on
    extra: tuple[AddedToken, ...] = ()  # special, without a name
    numbered: Mapping[int, AddedToken] = field(default_factory=dict)  # by the ids that the files give them
    has_flags: bool = True  # The files tell more of the numbered tokens than their text.

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Raises StartupError for a file that is broken."""
        config = read_object(directory / CONFIG)
        older = NUMBERED not in config
        beside = read_object(directory / MAP) if older else {}
        config |= beside
        reader = _Reader(directory, frozenset(beside))
        key = next(filter(config.get, EXTRA), EXTRA[0])
        names = config.get(key) or []
        named = reader.named(config) | (reader.more(key, names) if isinstance(names, dict) else {})
        extra = () if isinstance(names, dict) else tuple(reader.extra(key, names))
        if not older:
            return cls(directory, named, extra, reader.numbered(config[NUMBERED]))
        special = {token.content for token in (*named.values(), *extra)}
        return cls(directory, named, extra, reader.older_numbered(read_object(directory / ADDED), special), False)

    @property
    def texts(self) -> dict[str, str]:
        """Returns the text of each named token, as templates use them."""
        return {name: token.content for name, token in self.named.items()}

    def complete(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Adds the tokens that tokenizer.json lacks, and returns them as it would have them, each a JSON object.

        Raises StartupError where a token would not have the id that the files give it.
        """
        taken = {id: content for content, id in tokenizer.get_vocab(with_added_tokens=True).items()}
        before = tokenizer.get_added_tokens_decoder()
        tokenizer.add_tokens(list(self._lacking(tokenizer)))
        for id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
            if taken.get(id, token.content) != token.content:
                raise self._contradiction(token.content, None, id)
        for id, token in self.numbered.items():
            if token.content and tokenizer.token_to_id(token.content) != id:
                raise self._contradiction(token.content, id, tokenizer.token_to_id(token.content))
        after = tokenizer.get_added_tokens_decoder()
        return tuple(_entry(id, token) for id, token in sorted(after.items()) if repr(before.get(id)) != repr(token))

    def _lacking(self, tokenizer: Tokenizer) -> Iterator[AddedToken]:
        """Yields what transformers adds: first all numbered tokens, which may also change the flags of one."""
        names = {token.content for token in self.named.values()}
        there = tokenizer.get_added_tokens_decoder()
        known = {token.content for token in there.values()}
        same = set(map(repr, there.values())) if self.has_flags else known
        for _, token in sorted(self.numbered.items()):
            if (repr(token) if self.has_flags else token.content) not in same:
                token.special |= token.content in names
                known.add(token.content)
                yield token
        for token in (*self.named.values(), *self.extra):
            if token.content not in known:
                known.add(token.content)
                yield token

    def _contradiction(self, content: str, wanted: int | None, found: int | None) -> StartupError:
        claim = "takes the id of another token" if wanted is None else f"should have the id {wanted}"
        return StartupError(
            f"Cannot serve {self.directory}: the token {shortened(content)} {claim}, and with tokenizer.json it gets "
            f"{found}; save the tokenizer again, so that its files agree."
        )


def _entry(id: int, token: AddedToken) -> str:
    flags = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    kind = {"normalized": token.normalized, "special": token.special}
    return json.dumps({"id": id, "content": token.content} | flags | kind)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes tokens of what is in the files. Its methods raise StartupError for what is none."""

    directory: Path
    in_map: frozenset[str] = frozenset()  # the fields that come from MAP; all others are CONFIG's

    def error(self, field: str, what: str) -> StartupError:
        file = MAP if field in self.in_map else CONFIG
        return StartupError(f"Cannot serve {self.directory}: in {file}, {what}; fetch or save it again.")

    def token(self, name: str, value: Any, within: str | None = None, **flags: bool) -> AddedToken:
        """Makes a token of its text, or of the object that transformers saves; without flags it is a special one.

        `within` is the field that has the token; None: `name` is the field.
        """
        field = name if within is None else within
        given = value if isinstance(value, dict) else {"content": value}
        content = given.get("content")
        chosen = {key: given[key] for key in _FLAGS if given.get(key) is not None}
        if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in chosen.values()):
            raise self.error(field, f"{shortened(name)} is {shortened(value)}, which is no token")
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise self.error(field, f"{shortened(name)} is {shortened(value)}, which is no text")
        return AddedToken(content, **({"special": True} | chosen | flags))

    def named(self, config: Mapping[str, Any]) -> dict[str, AddedToken]:
        """Returns bos_token and the like; add_bos_token is none."""
        found = {}
        for name, value in config.items():
            is_token = name.endswith("_token") and (name in STANDARD or isinstance(value, str | dict))
            if is_token and value is not None:
                found[name] = self.token(name, value, special=True)
        return found

    def more(self, key: str, values: Mapping[str, Any]) -> dict[str, AddedToken]:
        """Reads extra tokens that have names."""
        return {name: self.token(name, value, key, special=True) for name, value in values.items()}

    def extra(self, key: str, values: Any) -> Iterator[AddedToken]:
        if not isinstance(values, list):
            raise self.error(key, f"{key} is {shortened(values)}, neither a list nor an object")
        for value in values:
            yield self.token(key, value, special=True)

    def numbered(self, values: Any) -> dict[int, AddedToken]:
        """Reads added_tokens_decoder, in which a token is special only if it says so."""
        if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
            raise self.error(NUMBERED, f"{NUMBERED} is no object of tokens by their ids")
        if strange := [key for key in values if not (key.isascii() and key.isdigit() and len(key) < 10)]:
            raise self.error(NUMBERED, f"{NUMBERED} has {shortened(strange[0])}, which is no token id")
        return {int(key): self.token(key, {"special": False} | value, NUMBERED) for key, value in values.items()}

    def older_numbered(self, values: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
        """Reads added_tokens.json, which has the ids alone."""
        found = {}
        for content, id in values.items():
            if type(id) is not int or id < 0:
                raise StartupError(f"{self.directory / ADDED} gives {shortened(content)} no token id; save it again.")
            found[id] = self.token(content, content, special=content in special, normalized=content not in special)
        return found
