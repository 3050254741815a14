"""Encodes what a chat template rendered: its own special tokens are tokens, and a client's text is only text.

A second backend shares the model of the first. There special tokens have secret names instead of their texts, and the
template's own ones are replaced by these names before the text is encoded. Everything else is encoded as ever, since
it is still one text.
"""

import re
import secrets
from collections.abc import Mapping, Sequence, Set
from itertools import chain

import tokenizers

from octavo.server.http.wire import clean
from octavo.server.text.traced import Traced, origins, plain

_OWN_TEXT = re.compile(b"\x01+")
_EDGE = "\ufdd0"  # no letter, and no character: no added token begins or ends with it
_LETTERS = "abcdefghijklmnop"  # No normaliser changes them.


class TracedEncoder:
    """Encodes Traced texts into the ids of a backend."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self._names = {token.content: _secret() for token in added.values() if token.special}
        longest_first = sorted((token.content for token in added.values()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        special = [token for token in added.values() if token.special]
        self._backends = [_Renamed(backend, self._names, matched_raw=False)]
        if any(token.normalized or token.single_word for token in special):
            self._backends.append(_Renamed(backend, self._names, matched_raw=True))
        self.before, self.after = map(tuple, _surroundings(backend))  # what the post-processor adds to a text
        self._spellings = _spellings(backend, [token.content for token in special])

    def encode(self, text: Traced, add_special_tokens: bool) -> tuple[int, ...]:
        """Returns ids. Special tokens are added as the post-processor adds them to a plain text."""
        renamed, count = self._renamed(text)
        for backend in self._backends:
            ids, found = backend.encode(renamed, self._spellings)
            if found == count:
                break  # Otherwise a normaliser has hidden a token, and its name must not become text.
        return (*self.before, *ids, *self.after) if add_special_tokens else tuple(ids)

    def _renamed(self, text: Traced) -> tuple[str, int]:
        """Returns the text with the names of the template's own special tokens, and how many these are."""
        known: dict[str, tuple[str, int]] = {}  # A template says the same before each message.
        characters, parts, position, count = plain(text), [], 0, 0
        for run in _OWN_TEXT.finditer(origins(text)):
            own = characters[run.start() : run.end()]
            if own not in known:
                found = sum(match[0] in self._names for match in self._pattern.finditer(own))
                known[own] = self._pattern.sub(lambda match: self._names.get(match[0], match[0]), own), found
            parts += [characters[position : run.start()], known[own][0]]
            position, count = run.end(), count + known[own][1]
        return "".join([*parts, characters[position:]]), count


class _Renamed:
    """A backend in which special tokens have other names, and which encodes into the first backend's ids."""

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str], matched_raw: bool) -> None:
        """With `matched_raw` special tokens are found before a normaliser runs, and also within words."""
        self._backend = tokenizers.Tokenizer(backend.model)  # The model is not copied.
        if backend.normalizer is not None:
            self._backend.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._backend.pre_tokenizer = backend.pre_tokenizer
        _fill_gaps(self._backend)
        self._id_of: dict[int, int] = {}
        self._special: set[int] = set()
        for id, token in backend.get_added_tokens_decoder().items():
            content = names[token.content] if token.special else token.content
            raw = matched_raw and token.special
            renamed = tokenizers.AddedToken(
                content,
                single_word=token.single_word and not raw,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized and not raw,
            )
            (self._backend.add_special_tokens if token.special else self._backend.add_tokens)([renamed])
            own_id = self._backend.token_to_id(content)
            assert own_id is not None
            self._id_of[own_id] = id
            if token.special:
                self._special.add(own_id)

    def encode(self, text: str, spellings: Mapping[int, Sequence[int]]) -> tuple[list[int], int]:
        """Returns the ids, and how many special tokens there are.

        The text is a batch of one, because encoding a batch releases the GIL and encoding a text does not.
        """
        ids = self._backend.encode_batch_fast([clean(text)], add_special_tokens=False)[0].ids
        count = sum(map(self._special.__contains__, ids))
        if not spellings.keys().isdisjoint(ids):
            ids = list(chain.from_iterable(spellings.get(id, (id,)) for id in ids))
        return [self._id_of.get(id, id) for id in ids], count


def _secret() -> str:
    """Returns a name that no client can guess."""
    return _EDGE + "".join(secrets.choice(_LETTERS) for _ in range(32)) + _EDGE


def _fill_gaps(backend: tokenizers.Tokenizer) -> None:
    """Adds tokens that no text contains, until the ids of further ones lie behind the whole vocabulary.

    A backend gives a new token the number of its tokens as an id, which a vocabulary with gaps may have already.
    """
    vocabulary = backend.get_vocab(with_added_tokens=False)
    gaps = max(vocabulary.values(), default=-1) + 1 - len(vocabulary)
    backend.add_tokens([tokenizers.AddedToken(_secret(), normalized=False) for _ in range(gaps)])


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Returns what the post-processor puts before and behind a text."""
    bare, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    starts = range(len(whole) - len(bare) + 1)
    start = next((start for start in starts if whole[start : start + len(bare)] == bare), len(whole))
    return whole[:start], whole[start + len(bare) :]


def _spellings(backend: tokenizers.Tokenizer, special: Sequence[str]) -> dict[int, list[int]]:
    """Returns the ids of text for each special token that the model's own vocabulary has, too.

    Some models find whatever is in their vocabulary, such as "</s>", also where it is only text. The token of unknown
    text stands for text, and stays.
    """
    model = backend.model
    texts = {id: text for text in special if (id := model.token_to_id(text)) is not None}
    unknown = set(_ids(model, ["\ufdd1"])) & texts.keys() if texts else set()
    known = {id: text for id, text in texts.items() if id not in unknown}
    return {id: _spelt(model, text, known.keys(), unknown) for id, text in known.items()}


def _spelt(model: tokenizers.models.Model, text: str, special: Set[int], unknown: Set[int]) -> list[int]:
    """Returns the ids of the text in pieces: the fewest that are known to the model and not special."""
    cuts = [[text[:cut], text[cut:]] for cut in range(1, len(text))]
    spelt = [ids for pieces in (*cuts, list(text)) if (ids := _ids(model, pieces)) and special.isdisjoint(ids)]
    return min(spelt, key=lambda ids: (sum(id in unknown for id in ids), len(ids)), default=[*unknown])


def _ids(model: tokenizers.models.Model, pieces: Sequence[str]) -> list[int]:
    """Returns the ids of the pieces; none if the model has no token for unknown text, and would need one."""
    try:
        return [token.id for piece in pieces for token in model.tokenize(piece)]
    except Exception:  # tokenizers raises nothing narrower
        return []
