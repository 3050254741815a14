"""Makes conversation from two corpora: people who talk with each other, and questions to an assistant."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from octavo.model.demo.corpora.archives import texts
from octavo.model.demo.corpora.documents import Document

TOPICS = {"computers", "conversations", "emotion", "greetings", "health", "humor", "literature", "science"}
TOPICS |= {"tech_support", "trivia"}
LEAST_RATING = 7  # of 10; each rating of a conversation by those who led it
QUESTION, ANSWER = range(4, 26), range(10, 90)  # words
# The people were students in a chat room of their university: these words say so, or are not for everybody.
UNFIT = re.compile(
    r"\b(byu|provo|utah|mission\w*|mtc|fhe|mormon|lds|church|lord|god|jesus|pray\w*|temple|bishop|prompt|chat\w*|points?|"
    r"rounds?|majors?|majoring|semester|finals?|exams?|class(es)?|school|college|degree|internship|apartment|roommates?|"
    r"threshold|bot|username|haha\w*|lol|xd|ya|idk|gonna|wanna|kinda|cuz|u|ur|dude|bro|im|dont|cant|ive|thats|sex\w*|"
    r"drunk|stupid|kill|hell|damn|crap|genocide|dumbledore|wizard\w*|hogwarts|freshman|sophomore|junior|senior|husband|"
    r"wife|boyfriend|girlfriend)\b",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"(who|what|when|where|why|how|which|do|does|did|are|is|can|could|would|will|have|has|should)('s)?\b", re.IGNORECASE
)
# A question with such a word refers to what was said before it. An answer that begins so goes on with something else.
REFERS = re.compile(
    r"\b(it|that|this|those|these|they|them|he|him|his|she|her|there|one|else|then|so|guys|too|again)\b", re.IGNORECASE
)
GOES_ON = re.compile(r"(and|or|but|so|because|also|then|same|me|what|how|do|did|are|is)\b", re.IGNORECASE)


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields a document for each question and its answer. `archives` are chitchat-dataset and chatterbot-corpus."""
    ((_, people),) = texts(archives[0], "chitchat_dataset/dataset.json")
    yield from _between_people(json.loads(people).values())
    for name, listed in texts(archives[1], "chatterbot_corpus/data/english/*.yml"):
        if PurePosixPath(name).stem in TOPICS:
            yield from _with_assistant(conversations(listed))


def _between_people(conversations: Iterable[dict[str, Any]]) -> Iterator[Document]:
    """Yields what was asked and answered in whole sentences, in conversations that both sides have liked."""
    for conversation in conversations:
        ratings = [int(rating) for rating in (conversation.get("ratings") or {}).values()]
        if not ratings or min(ratings) < LEAST_RATING:
            continue
        turns = [[_sentence(message["text"]) for message in turn] for turn in conversation["messages"]]
        for questions, answers in pairwise(turns):
            # What was written in several messages often is about several matters.
            if questions and len(answers) == 1 and _is_understood(questions[-1]) and _is_good(answers[0]):
                yield Document(questions[-1], answers[0])


def _is_understood(question: str) -> bool:
    """Returns whether a message asks for something, and makes sense without those before it."""
    asks = bool(ASKS.match(question)) and question.endswith("?") and not re.search(r"[.!?]\s", question)
    return asks and not REFERS.search(question) and len(question.split()) in QUESTION and _is_fit(question)


def _is_good(answer: str) -> bool:
    return len(answer.split()) in ANSWER and _is_fit(answer) and not GOES_ON.match(answer)


def _is_fit(text: str) -> bool:
    return text.isascii() and not UNFIT.search(text)


def conversations(listed: str) -> list[list[str]]:
    """Returns the conversations of a file of chatterbot-corpus; those with more than plain text in a turn are left out.

    The files are YAML: "- - " opens a conversation, "  - " another turn, and "    " goes on with a turn.
    """
    found: list[list[str]] = []
    for line in listed.partition("conversations:")[2].splitlines():
        if line.startswith("- - "):
            found.append([line[4:]])
        elif line.startswith("  - ") and found:
            found[-1].append(line[4:])
        elif line.startswith("    ") and found:
            found[-1][-1] += f" {line.strip()}"
    return [[_unquoted(turn) for turn in turns] for turns in found if not any(turn[:1] in "|>" for turn in turns)]


def _with_assistant(listed: Iterable[Sequence[str]]) -> Iterator[Document]:
    """Yields the turns two by two: the user's, and the assistant's if that has more than a few words."""
    for turns in listed:
        for asked, answered in zip(turns[::2], turns[1::2], strict=False):
            if len(asked.split()) >= 2 and len(answered.split()) >= 6:
                yield Document(_sentence(asked, asks=bool(ASKS.match(asked))), _sentence(answered))


def _unquoted(turn: str) -> str:
    text = turn.strip()
    quote = text[:1]
    if len(text) > 1 and quote in "'\"" and text.endswith(quote):
        text = text[1:-1].replace("''", "'") if quote == "'" else text[1:-1].replace('\\"', '"')
    return " ".join(text.split())


def _sentence(text: str, asks: bool = False) -> str:
    """Returns the text with a capital at its beginning and a mark at its end; nothing for nothing."""
    spaced = " ".join(text.split())
    if not spaced:
        return ""
    written = re.sub(r"\bi\b(?=['\s])", "I", spaced[0].upper() + spaced[1:])
    return written if written[-1] in ".!?:)\"'" else written + ("?" if asks else ".")
