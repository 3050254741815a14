"""Describes harmony, the format in which gpt-oss writes messages, and recognises it in what a chat template renders.

    <|start|>assistant<|channel|>analysis<|message|>So...<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>Two.<|return|>

A message is a header and a content. The header names who speaks, to whom, and in which channel. Source: docs/format.md
of https://github.com/openai/harmony.
"""

import re

from octavo.server.text.traced import Traced, origins, plain

START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL = (
    f"<|{name}|>" for name in ("start", "end", "message", "channel", "constrain", "return", "call")
)
MARKERS = (START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL)
LAST = (RETURN, CALL)  # after which the model says nothing more
EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}  # what the model knows for other degrees
FUNCTIONS = "functions."  # the namespace of the tools of clients
_CHANNEL = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
_RECIPIENT = re.compile(r"(?:^|[\s>])to=([^\s<]+)")
# What a header consists of, whole or cut.
_HEADER = re.compile(
    rf"\s*(?:{re.escape(START)}\w*)?\s*(?:to=[^\s<]*)?\s*"
    rf"(?:{re.escape(CHANNEL)}\s*\w*)?\s*(?:to=[^\s<]*)?\s*(?:{re.escape(CONSTRAIN)})?\s*\w*\s*"
)


def channel_of(header: str) -> str | None:
    """Returns the channel that a header names; None if it names none."""
    found = _CHANNEL.search(header)
    return found[1] if found else None


def recipient_of(header: str) -> str | None:
    """Returns to whom a header addresses its message; None if it names nobody."""
    found = _RECIPIENT.search(header)
    return found[1] if found else None


def is_header(text: str) -> bool:
    """Returns whether the text is a header, or the beginning of one."""
    return _HEADER.fullmatch(text) is not None


def arguments_of(rendered: str, name: str) -> str | None:
    """Returns what follows the header of the last message to a function; None if there is no such message."""
    before, message, after = rendered.rpartition(f"to={FUNCTIONS}{name}")
    header, content_marker, content = after.partition(MESSAGE)
    is_call = START in before and message and content_marker and CALL in content and is_header(header)
    return content if is_call else None


def begun_by(prompt: Traced) -> str:
    """Returns how a prompt begins the answer: a header, perhaps without an end, which the template has written."""
    begin = prompt.rfind(START)
    while begin >= 0 and 0 in origins(prompt)[begin : begin + len(START)]:
        begin = prompt.rfind(START, 0, begin)
    header, message, content = plain(prompt)[max(begin, 0) :].partition(MESSAGE)
    is_open = begin >= 0 and not any(marker in content for marker in (END, RETURN, CALL))
    return header + message if is_open else ""
