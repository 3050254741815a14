"""Makes questions about command lines from the examples of `eg`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from octavo.model.demo.corpora.archives import texts
from octavo.model.demo.corpora.documents import Document

MOST_WORDS = 30  # of the sentence that says what a command does
LONGEST = 900  # characters of an example
EXAMPLE = re.compile(r"(?:\A|(?<=\n)\n)(?P<task>\S[^\n]*(?:\n\S[^\n]*)*)\n\n(?P<code>(?: {4}[^\n]*\n|\n(?= {4}))+)")
# What begins so is no task, or needs the text before it to be understood.
NO_TASK = re.compile(
    r"(this|that|these|those|it|its|the|an?|there|you|we|i|some|by|when|in|on|note|for|e\.g|or|and|but|if|as|to|with|"
    r"without|using|will|would|can|also|another|alternatively|similarly|instead|here|now|then)\b",
    re.IGNORECASE,
)


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields a document for each example that has one sentence before it which says what it does."""
    for name, page in texts(archives[0], "*/eg/examples/*.md"):
        command = PurePosixPath(name).stem
        for found in EXAMPLE.finditer(re.sub(r"\n{3,}", "\n\n", page)):
            task = " ".join(found["task"].split()).rstrip(":.,")
            if _stands_alone(task) and len(found["code"]) <= LONGEST:
                yield Document(
                    f"Show me how to use `{command}` for this: {task[0].lower()}{task[1:]}.", _answer(found["code"])
                )


def _stands_alone(task: str) -> bool:
    one_sentence = not re.search(r"[.:?!]\s", task)
    short = 2 <= len(task.split()) <= MOST_WORDS
    return short and one_sentence and task[0].isalpha() and not NO_TASK.match(task)


def _answer(code: str) -> str:
    lines = "\n".join(line.removeprefix("    ").rstrip() for line in code.strip("\n").splitlines())
    return f"```bash\n{lines.strip()}\n```"
