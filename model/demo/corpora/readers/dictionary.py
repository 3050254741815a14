"""Makes definitions of common English words from WordNet."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.model.demo.corpora.archives import members
from octavo.model.demo.corpora.documents import Document

KINDS = {"noun": "a noun", "verb": "a verb", "adj": "an adjective", "adv": "an adverb"}
LEAST_TAGGED = 2  # senses of a word that occur in WordNet's own sample of texts: rarer words are left out
MOST_SENSES = 3
WORD = re.compile(r"[a-z]{4,}")
UNFIT = re.compile(r"\b(slang|slur|obscene|offensive|vulgar|disparaging|derogatory|insulting|sexual)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sense:
    """A Sense is one meaning of a word: the definition, and sentences that use it."""

    definition: str
    examples: tuple[str, ...]


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields a document for each common word of each kind. The formats are those of wndb(5WN)."""
    files = dict(members(archives[0], "package/dict/*"))
    for file, kind in KINDS.items():
        data = files[f"package/dict/data.{file}"]
        for line in files[f"package/dict/index.{file}"].decode("utf-8").splitlines():
            if (word := line.partition(" ")[0]) and WORD.fullmatch(word):
                senses = [_sense(data, offset, word) for offset in _offsets(line)]
                if any(sense.examples for sense in senses) and not any(map(_is_unfit, senses)):
                    yield Document(f'What does the word "{word}" mean?', _answer(word, kind, senses))


def _offsets(line: str) -> list[int]:
    """Returns where the first senses of a word stand in the file of data, the most frequent first."""
    fields = line.split()
    pointers = int(fields[3])
    tagged = int(fields[5 + pointers])
    offsets = [int(field) for field in fields[6 + pointers :]]
    return offsets[:MOST_SENSES] if tagged >= LEAST_TAGGED else []


def _sense(data: bytes, offset: int, word: str) -> Sense:
    """Returns the sense at an offset, with the examples that use the word itself. Others use a synonym."""
    line = data[offset : data.index(b"\n", offset)].decode("utf-8")
    gloss = line.partition("| ")[2].strip()
    definition = re.split(r';\s*"', gloss)[0].strip(" ;")
    examples = re.findall(r'"([^"]+)"', gloss[len(definition) :])
    return Sense(definition, tuple(example for example in examples if word[:-1] in example.lower()))


def _is_unfit(sense: Sense) -> bool:
    return bool(UNFIT.search(sense.definition)) or not sense.definition or '"' in sense.definition


def _answer(word: str, kind: str, senses: Sequence[Sense]) -> str:
    opening = f'"{word.capitalize()}" is {kind}. It means'
    if len(senses) == 1:
        return f"{opening}: {_told(senses[0])}"
    return "\n".join([f"{opening}:", *(f"{number}. {_told(sense)}" for number, sense in enumerate(senses, 1))])


def _told(sense: Sense) -> str:
    example = f' For example: "{sense.examples[0].strip()}".' if sense.examples else ""
    return f"{sense.definition}.{example}"
