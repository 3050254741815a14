"""Reads the text of a domain from files and folders, and tells what of it cannot be read."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.server.http.errors import StartupError
from octavo.server.http.reading import read_json

ENOUGH_FILES = 12  # With fewer files, each is cut into documents at its blank lines.
MOST_BYTES = 16 << 20  # of a domain; more is more than an hour on a few cores trains on


@dataclass(frozen=True, slots=True)
class Text:
    """A Text is one document: what is to be learned, and what comes before that."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Found is what was found of a domain."""

    texts: tuple[Text, ...]
    passed_over: int  # files in folders that hold no UTF-8 text
    cut_off: bool  # There was more text than MOST_BYTES.


def read(name: str, paths: Sequence[Path], seed: int) -> Found:
    """Reads files, and all files in folders, in an order that the seed gives. Raises StartupError.

    A file is one document, or, where there are few files, as many as blank lines separate. A .jsonl file has one in
    each line: an object with "text", or with "prompt" and "answer", of which only the answer is learned.
    """
    files = sorted({file for path in paths for file in _files(name, path)})
    random.Random(seed).shuffle(files)
    named = {path for path in paths if path.is_file()}
    texts: list[Text] = []
    passed_over, size = 0, 0
    for file in files:
        if size > MOST_BYTES:
            break
        try:
            contents = file.read_text("utf-8")
        except UnicodeDecodeError:
            if file in named:
                raise StartupError(f"{file} of the domain {name} is not UTF-8 text; convert or leave it out.") from None
            passed_over += 1
            continue
        size += len(contents)
        texts += _documents(file, contents, cut=len(files) < ENOUGH_FILES)
    if not texts:
        raise StartupError(f"The domain {name} has no text in {', '.join(map(str, paths))}: give files of UTF-8 text.")
    return Found(tuple(texts), passed_over, size > MOST_BYTES)


def _files(name: str, path: Path) -> Iterator[Path]:
    """Yields the files of a folder, hidden ones excepted, or the file itself. Raises StartupError."""
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file() and not any(part.startswith(".") for part in each.relative_to(path).parts):
                yield each
    elif path.is_file():
        yield path
    else:
        raise StartupError(f"There is no file or folder {path}, which --domain {name} names; correct the path.")


def _documents(file: Path, contents: str, cut: bool) -> Iterator[Text]:
    if file.suffix == ".jsonl":
        for number, line in enumerate(contents.splitlines(), start=1):
            if line.strip():
                yield _parsed(file, number, line)
        return
    for part in _parts(contents) if cut else [contents]:
        if part.strip():
            yield Text(part.strip("\n"))


def _parts(contents: str) -> Iterator[str]:
    """Yields what blank lines separate; a line of spaces is blank."""
    lines: list[str] = []
    for line in contents.splitlines():
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    yield "\n".join(lines)


def _parsed(file: Path, number: int, line: str) -> Text:
    try:
        value = read_json(line)
    except ValueError:
        value = None
    match value:
        case {"prompt": str(prompt), "answer": str(answer)}:
            return Text(answer, prompt)
        case {"text": str(text)}:
            return Text(text)
    raise StartupError(
        f'Line {number} of {file} is no object with "text", or with "prompt" and "answer", as texts; correct it.'
    )
