"""No copy of a document is kept, and none of a text that the quality benchmark scores."""

from pydoc_data.topics import topics

from benchmarks.quality.scores import HELD_OUT, TOPICS
from octavo.model.demo.corpora.documents import RUN, Document, chosen, passages, plain

NOTHING: frozenset[tuple[str, ...]] = frozenset()


def documents(count: int) -> list[Document]:
    return [Document(f"Question {number}?", f"This is answer number {number}.") for number in range(count)]


def test_choice_depends_on_the_contents_alone() -> None:
    given = documents(50)
    taken = chosen(given, 20, NOTHING)
    assert len(taken) == 20
    assert taken == chosen(reversed(given), 20, NOTHING)
    assert taken != given[:20]


def test_documents_with_the_same_question_or_answer_are_left_out() -> None:
    first = Document("What is it?", "It is a long answer.")
    same_question = Document("what is IT", "It is another long answer.")
    same_answer = Document("And this?", "it is a LONG answer")
    assert chosen([first, same_question, same_answer], 9, NOTHING) == [first]


def test_answers_that_teach_nothing_are_left_out() -> None:
    assert chosen([Document("What is it?", "Yes.")], 9, NOTHING) == []


def test_document_is_left_out_for_a_shared_passage_and_for_no_less() -> None:
    words = [f"word{number}" for number in range(RUN)]
    apart = passages([f"Before. {' '.join(words)}! After."])
    shares = Document("A question?", f"Other words, {', '.join(words).upper()} and more.")
    nearly = Document("A question, too?", " ".join([*words[:-1], "different"]))
    assert chosen([shares, nearly], 9, apart) == [nearly]


def test_no_document_of_the_quality_benchmarks_texts_is_kept() -> None:
    """The command keeps apart all topics of Python's documentation, and what --apart gives."""
    held_out = HELD_OUT.read_text("utf-8")
    apart = passages([*topics.values(), held_out])
    scored = [*held_out.split("\n\n"), *(part for topic in TOPICS for part in topics[topic].split("\n\n"))]
    long = [Document(f"Go on {n}.", part) for n, part in enumerate(scored) if len(plain(part).split()) >= RUN]
    assert len(long) > 50
    assert chosen(long, len(long), apart) == []


def test_line_is_what_upcycle_reads() -> None:
    document = Document("Why?", 'One\u2028two\n"three".')
    assert document.line() == '{"prompt": "Why?", "answer": "One\\u2028two\\n\\"three\\"."}\n'
    assert len(document.line().splitlines()) == 1
