"""Turns what --domain names into documents of token ids, for the commands that train."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.server.http.errors import StartupError

if TYPE_CHECKING:
    from octavo.model.train.corpus import Document
    from octavo.server.text.documents import Text
    from octavo.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class DomainPaths:
    """DomainPaths are what one --domain says."""

    name: str
    paths: tuple[Path, ...]


def parse(text: str) -> DomainPaths:
    """Parses NAME=PATH,PATH. Raises ArgumentTypeError."""
    name, _, paths = text.partition("=")
    found = [path for path in paths.split(",") if path]
    if not re.fullmatch(r"[\w.-]{1,64}", name) or not found:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no domain such as law=contracts/,statutes.txt")
    return DomainPaths(name, tuple(Path(path).expanduser() for path in found))


def names_of(domains: Sequence[DomainPaths]) -> tuple[str, ...]:
    """Returns the names. Raises StartupError where there are none or a path leads nowhere, before anything is read."""
    names = tuple(domain.name for domain in domains)
    if not names:
        raise StartupError("There is nothing to train on: give --domain NAME=PATH, such as --domain law=contracts/.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise StartupError(f"The domain {twice} is given twice: join its paths by commas, or give another name.")
    for domain in domains:
        for path in domain.paths:
            if not path.exists():
                raise StartupError(
                    f"There is no file or folder {path}, which --domain {domain.name} names; correct it."
                )
    return names


def encoded(domain: DomainPaths, tokenizer: "Tokenizer", ends: Sequence[int], seed: int) -> "list[Document]":
    """Reads and encodes a domain's documents; each ends with the first of `ends`, if there is any.

    Raises StartupError.
    """
    from octavo.server.text import documents

    found = documents.read(domain.name, domain.paths, seed)
    if found.passed_over:
        print(f"octavo: {found.passed_over} files of {domain.name} hold no UTF-8 text; passed over", file=sys.stderr)
    if found.cut_off:
        most = documents.MOST_BYTES >> 20
        print(f"octavo: {domain.name} has more than {most} MiB of text; the rest is left out", file=sys.stderr)
    return [_document(text, tokenizer, ends) for text in found.texts]


def _document(text: "Text", tokenizer: "Tokenizer", ends: Sequence[int]) -> "Document":
    from octavo.model.train.corpus import Document

    before = tokenizer.encode_rendered(text.prompt, add_special_tokens=True) if text.prompt else ()
    learned = tokenizer.encode(text.text, add_special_tokens=not text.prompt)
    ids = (*before, *learned)
    closed = not ends or (ids and ids[-1] in ends)
    return Document.of(ids if closed else (*ids, ends[0]), len(before))
