"""Holds the text of the domains as token ids: documents, how they are split, and the rows that training takes."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from octavo.model.config import ModelError

LEAST_DOCUMENTS = 12  # of a domain: 4 to test, 2 to validate, 6 to train with
LEAST_ROWS = 4  # of training text in a domain
LEAST_TOKENS = 8  # of a document; shorter ones are left out
MOST_TEST, MOST_VALIDATION = 32, 16  # documents of a domain


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A Document is a text that lies on one side of the split."""

    tokens: Tensor  # [N] int64
    first: int  # Training and evaluation count the loss of this token and of those after it; at least 1.

    @classmethod
    def of(cls, tokens: Sequence[int], first: int = 1) -> "Document":
        return cls(torch.tensor(tokens, dtype=torch.int64), max(1, first))

    def cut(self, length: int) -> "Document":
        """Returns the document with the first `length` tokens, or, where that leaves nothing to count, later ones."""
        start = max(0, self.first - length // 2) if self.first >= length else 0
        return Document(self.tokens[start : start + length], self.first - start)

    def digest(self, seed: int) -> str:
        """Returns a number that depends on the contents and the seed alone."""
        return hashlib.sha256(f"{seed} {self.first} ".encode() + self.tokens.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """A Domain is one kind of text. No document, and no copy of one, lies in two of its parts."""

    name: str
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]

    @property
    def documents(self) -> tuple[Document, ...]:
        return self.test + self.validation + self.train

    def tokens(self) -> int:
        """Counts the tokens to train with."""
        return sum(len(document.tokens) for document in self.train)


def split(texts: Sequence[tuple[str, Sequence[Document]]], seed: int, length: int) -> tuple[Domain, ...]:
    """Splits named domains by document, in an order that the seed gives. `length` is that of a row, in tokens.

    A copy of an earlier document is left out, whichever domain it is in. A fifth of a domain, 4 to 32 documents, is for
    the test, and a tenth, 2 to 16, for validation. Raises ModelError for a domain that is too small.
    """
    seen: set[str] = set()
    return tuple(_split(name, _fresh(documents, seed, seen), length) for name, documents in texts)


def _fresh(documents: Iterable[Document], seed: int, seen: set[str]) -> list[Document]:
    """Returns the documents that are long enough and that nobody has seen, in the order of their digests."""
    found: dict[str, Document] = {}
    for document in documents:
        long_enough = len(document.tokens) >= LEAST_TOKENS and document.first < len(document.tokens)
        if long_enough and (digest := document.digest(seed)) not in seen:
            found[digest] = document
            seen.add(digest)
    return [found[digest] for digest in sorted(found)]


def _split(name: str, documents: list[Document], length: int) -> Domain:
    if len(documents) < LEAST_DOCUMENTS:
        raise ModelError(
            f"The domain {name} has {len(documents)} different documents of {LEAST_TOKENS} tokens or more, and "
            f"{LEAST_DOCUMENTS} are needed to train and to test on separate ones: add files, or separate the parts of "
            "a file by blank lines."
        )
    tested = min(MOST_TEST, max(4, len(documents) // 5))
    validated = min(MOST_VALIDATION, max(2, len(documents) // 10))
    test, rest = documents[:tested], documents[tested:]
    domain = Domain(name, tuple(rest[validated:]), tuple(rest[:validated]), tuple(test))
    if domain.tokens() < LEAST_ROWS * length:
        raise ModelError(
            f"The domain {name} has {domain.tokens()} tokens to train with after {tested + validated} documents are "
            f"put aside, and {LEAST_ROWS * length} are needed: add text, or lower --length."
        )
    return domain


def digest_of(domains: Iterable[Domain]) -> str:
    """Returns a number that depends on all documents and on how they are split."""
    digest = hashlib.sha256()
    for domain in domains:
        for part in (domain.train, domain.validation, domain.test):
            digest.update(f"{domain.name} {len(part)}".encode())
            digest.update("".join(document.digest(0) for document in part).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A Row is what one sequence of a training step holds."""

    tokens: Tensor  # [S] int64
    counted: Tensor  # [S] bool: the loss of these tokens counts; never that of the first
    domain: int


class Rows(Protocol):
    """Rows are an endless list of them, which is the same whenever it is read."""

    def row(self, index: int) -> Row: ...


class DomainRows:
    """DomainRows are the training text of one domain, joined and cut into rows, in another order in each epoch."""

    def __init__(self, domain: Domain, number: int, length: int, seed: int) -> None:
        self._tokens = torch.cat([document.tokens for document in domain.train])
        self._counted = torch.cat([_counted(document) for document in domain.train])
        self._number, self._length, self._seed = number, length, seed
        self._count = len(self._tokens) // length
        self._order = cache(self._shuffled)

    def row(self, index: int) -> Row:
        epoch, place = divmod(index, self._count)
        start = int(self._order(epoch)[place]) * self._length
        window = slice(start, start + self._length)
        counted = self._counted[window].clone()
        counted[0] = False
        return Row(self._tokens[window], counted, self._number)

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.randperm(self._count, generator=generator(self._seed, "rows", self._number, epoch))


def _counted(document: Document) -> Tensor:
    counted = torch.zeros(len(document.tokens), dtype=torch.bool)
    counted[document.first :] = True
    return counted


@dataclass(frozen=True, slots=True)
class Mixture:
    """A Mixture takes the rows of its parts in turns."""

    parts: tuple[Rows, ...]

    def row(self, index: int) -> Row:
        turn, part = divmod(index, len(self.parts))
        return self.parts[part].row(turn)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A Batch is the rows of one step, or some documents; shorter ones end with padding that never counts."""

    tokens: Tensor  # [B, S] int64
    counted: Tensor  # [B, S] bool
    domains: Tensor  # [B] int64

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.tokens.to(device), self.counted.to(device), self.domains.to(device))


def batch_of(rows: Rows, step: int, count: int) -> Batch:
    """Returns the `count` rows of a step."""
    taken = [rows.row(index) for index in range(step * count, (step + 1) * count)]
    return Batch(
        torch.stack([row.tokens for row in taken]),
        torch.stack([row.counted for row in taken]),
        torch.tensor([row.domain for row in taken]),
    )


def padded(documents: Sequence[Document], domain: int, length: int) -> Batch:
    """Returns documents side by side, each cut to `length` tokens."""
    cut = [document.cut(length) for document in documents]
    longest = max(len(document.tokens) for document in cut)
    tokens = torch.zeros(len(cut), longest, dtype=torch.int64)
    counted = torch.zeros(len(cut), longest, dtype=torch.bool)
    for row, document in enumerate(cut):
        tokens[row, : len(document.tokens)] = document.tokens
        counted[row, : len(document.tokens)] = _counted(document)
    return Batch(tokens, counted, torch.full((len(cut),), domain))


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Returns a source of random numbers of its own for each purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
