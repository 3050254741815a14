"""Chooses the documents of a domain: no copies, no text that a benchmark scores, and the same ones each time."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

RUN = 12  # words in a row that make two texts share a passage
SHORTEST_ANSWER = 12  # characters


@dataclass(frozen=True, slots=True)
class Document:
    """A Document is a question as a user asks it, and the answer that an expert learns."""

    prompt: str
    answer: str

    def line(self) -> str:
        """Returns the line of a .jsonl file that `octavo upcycle --domain` reads.

        It is ASCII, because some other characters end a line for those who read lines.
        """
        return json.dumps({"prompt": self.prompt, "answer": self.answer}) + "\n"

    def digest(self) -> str:
        return hashlib.sha256(self.line().encode()).hexdigest()


def chosen(documents: Iterable[Document], most: int, apart: frozenset[tuple[str, ...]]) -> list[Document]:
    """Returns at most `most` documents in the order of their digests, so that they are a fair sample of all.

    Of documents with the same question or the same answer only the first is kept, because a copy could be trained on
    and tested on. A document that shares a passage with `apart` (see `passages`) is left out.
    """
    seen: set[tuple[str, str]] = set()
    kept: list[Document] = []
    for document in documents:
        keys = {("prompt", plain(document.prompt)), ("answer", plain(document.answer))}
        if len(document.answer) < SHORTEST_ANSWER or keys & seen:
            continue
        seen |= keys
        if apart.isdisjoint(_runs(f"{document.prompt} {document.answer}")):
            kept.append(document)
    return sorted(kept, key=Document.digest)[:most]


def passages(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Returns all passages of the texts: every RUN words in a row, without case and punctuation."""
    return frozenset(run for text in texts for run in _runs(text))


def plain(text: str) -> str:
    """Returns the words of a text alone, so that copies which differ in case or punctuation are found."""
    return " ".join(_words(text)) or text.strip()


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    return (tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
