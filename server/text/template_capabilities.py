"""Finds out, by rendering short trial conversations, what a chat template can render."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from octavo.server.text.call_formats import CallFormat, recognised, taught
from octavo.server.text.reasoning_tags import ReasoningTags
from octavo.server.text.reasoning_tags import recognised as recognised_tags
from octavo.server.text.template_trials import (
    ARGUMENTS,
    FUNCTION,
    TOOL,
    Render,
    call,
    conversation,
    shows,
    tried,
    word,
)
from octavo.server.text.turns import Kind, Turn

Bridges = Mapping[tuple[Kind, Kind], Sequence[Kind]]

_FILLERS = ("", "...")  # what a turn says that only keeps others apart: nothing, where the template takes that
# A conversation up to a turn of each kind, and what may follow such a turn.
_BEFORE: Mapping[Kind, tuple[Kind, ...]] = {
    "start": (),
    "user": ("user",),
    "assistant": ("user", "assistant"),
    "call": ("user", "call"),
    "result": ("user", "call", "result"),
}
_AFTER: Mapping[Kind, tuple[Kind, ...]] = {
    "user": ("assistant", "user"),
    "assistant": ("user",),
    "call": ("result", "assistant", "user"),
    "result": ("assistant", "user"),
}
_PAIRS: tuple[tuple[Kind, Kind], ...] = (
    *(("start", "assistant"), ("start", "call"), ("assistant", "call"), ("result", "user"), ("result", "call")),
    *(("call", "user"), ("call", "assistant"), ("call", "call")),
)
_WAYS: tuple[tuple[Kind, ...], ...] = (
    *((), ("assistant",), ("user",), ("assistant", "user")),
    *(("result",), ("result", "assistant"), ("result", "assistant", "user")),
)
_LATER_SYSTEMS: tuple[tuple[Kind, ...], ...] = (
    *(("user", "system"), ("user", "system", "assistant", "user"), ("user", "assistant", "system", "user")),
    ("system", "system", "user"),
)
_CALLED: tuple[tuple[Kind, ...], ...] = (("user", "call", "result"), ("user", "call", "result", "assistant", "user"))
_AMONG_CALLS: tuple[tuple[Kind, ...], ...] = (
    ("user", "call", "result", "system", "assistant", "user"),
    ("user", "call", "result", "system", "call", "result", "system"),
)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Says what a chat template renders; the rest has to be adapted before it is rendered."""

    complete: bool  # it shows each turn of a plain conversation
    system_role: bool  # a system message, if it comes first
    later_systems: bool  # system messages anywhere, and it leaves them where they are
    repeated_roles: bool  # two turns of one role in a row
    tools: bool  # descriptions of tools; it writes their calls in a format that can be read
    tool_calls: bool  # calls of the assistant, and their results
    call_format: CallFormat | None  # in which it writes calls, or tells of them in words; None: in no known one
    text_arguments: bool  # calls whose arguments are text instead of an object
    parallel_calls: bool  # several calls in one turn
    text_with_calls: bool  # text in a turn that has calls
    reasoning: ReasoningTags | None  # between which the model reasons; None: it does not, or in an unknown form
    lone_results: bool  # results that follow no call, in any place
    short_ids_only: bool  # calls only if their ids have nine letters and digits, as in Mistral's templates
    tools_want_user_first: bool  # with tools, it takes the first turn for the user's
    filler: str  # stands where an assistant or a user says nothing
    bridges: Bridges  # the turns that let the second kind of turn follow the first


def find_capabilities(render: Render) -> Capabilities:
    """Tries `render`, which may raise anything, on some dozens of conversations of a few words."""

    def takes(*kinds: Kind) -> bool:
        return shows(render, conversation(kinds))

    repeated = takes("user", "user", "assistant", "user") and takes("user", "assistant", "assistant", "user")
    calls = takes("user", "call", "result") and takes("user", "call", "result", "assistant", "user")
    format = _call_format(render) if calls else _taught_format(render)
    filler = next((text for text in _FILLERS if _takes_filler(render, text)), _FILLERS[-1])
    return Capabilities(
        complete=takes("user", "assistant", "user"),
        system_role=takes("system", "user"),
        later_systems=all(_in_order(render, kinds) for kinds in _LATER_SYSTEMS + (_AMONG_CALLS if calls else ())),
        repeated_roles=repeated,
        tools=format is not None and shows(render, conversation(("user",)), [TOOL]),
        tool_calls=calls,
        call_format=format,
        text_arguments=calls and shows(render, _called_with_text()),
        parallel_calls=calls and shows(render, _two_calls()),
        text_with_calls=calls and all(shows(render, conversation(kinds, text_with_calls=True)) for kinds in _CALLED),
        reasoning=recognised_tags(render),
        lone_results=calls
        and repeated
        and all(takes(*_BEFORE[kind], "result") for kind in ("start", "user", "assistant")),
        short_ids_only=calls and not shows(render, conversation(("user", "call", "result"), "call_0123456789{}")),
        tools_want_user_first=_takes_first_for_user(render),
        filler=filler,
        bridges=dict(_bridges(render, filler, _PAIRS if calls else _PAIRS[:1])),
    )


def plainer(capabilities: Capabilities) -> Iterator[Capabilities]:
    """Yields the capabilities, then ever fewer of them: the last are those that each template has."""
    user_first: Bridges = {("start", "assistant"): ("user",), ("start", "call"): ("user",)}
    opened: Bridges = {**user_first, ("start", "user"): ("user", "assistant")}
    bridges = {**capabilities.bridges, **user_first}
    folded = replace(capabilities, system_role=False, later_systems=False, bridges=bridges)
    plain = replace(folded, tools=False, tool_calls=False, repeated_roles=False, bridges=user_first)
    yield capabilities
    yield folded
    yield replace(capabilities, tools=False, tool_calls=False)
    yield plain
    yield replace(plain, bridges=opened)


def _in_order(render: Render, kinds: Sequence[Kind]) -> bool:
    turns = conversation(kinds)
    text = tried(render, turns)
    places = [-1 if text is None else text.find(turn["content"]) for turn in turns if turn["content"]]
    return min(places) >= 0 and places == sorted(places)


def _takes_filler(render: Render, filler: str) -> bool:
    user, assistant, last = conversation(("user", "assistant", "user"))
    return shows(render, [{**user, "content": filler}, {**assistant, "content": filler}, last])


def _call_format(render: Render) -> CallFormat | None:
    prompt, called = (tried(render, conversation(kinds)) for kinds in (("user",), ("user", "call")))
    return None if prompt is None or called is None else recognised(prompt, called, FUNCTION, ARGUMENTS)


def _taught_format(render: Render) -> CallFormat | None:
    """Returns the format that the template only describes, if results are shown after calls that are text there."""
    plain, told = (tried(render, conversation(("user",)), tools) for tools in ((), (TOOL,)))
    if plain is None or told is None or not shows(render, conversation(("user", "assistant", "result", "assistant"))):
        return None
    return taught(plain, told)


def _called_with_text() -> list[Turn]:
    turns = conversation(("user", "call", "result"))
    for each in turns[1]["tool_calls"]:
        each["function"]["arguments"] = word(1)
    return turns


def _two_calls() -> list[Turn]:
    turns = conversation(("user", "call", "result", "result", "assistant", "user"))
    ids = ("123456789", "abcdefghi")
    turns[1]["tool_calls"] = [call(ids[0]), call(ids[1], "Gnusto")]
    turns[2]["tool_call_id"], turns[3]["tool_call_id"], turns[3]["name"] = *ids, "Gnusto"
    return turns


def _takes_first_for_user(render: Render) -> bool:
    """Returns whether, with tools, an assistant's first turn is rendered as if it were the user's."""

    def same(tools: bool) -> bool:
        turns = (conversation(kinds) for kinds in (("assistant", "user"), ("user", "user")))
        texts = [tried(render, each, [TOOL] if tools else ()) for each in turns]
        return texts[0] is not None and texts[0] == texts[1]

    return same(tools=True) and not same(tools=False)


def _bridges(
    render: Render, filler: str, pairs: Sequence[tuple[Kind, Kind]]
) -> Iterator[tuple[tuple[Kind, Kind], Sequence[Kind]]]:
    """Yields for each pair of kinds the fewest turns that must stand between them.

    A pair that nothing joins is left out.
    """
    for first, second in pairs:
        for way in _WAYS:
            if _joins(render, filler, (first, second), way):
                yield (first, second), way
                break


def _joins(render: Render, filler: str, pair: tuple[Kind, Kind], way: Sequence[Kind]) -> bool:
    first, second = pair
    before, after = _BEFORE[first], _AFTER[second]
    turns = conversation((*before, *way, second, *after))
    for position in range(len(before), len(before) + len(way)):
        turns[position]["content"] = filler
    return shows(render, turns)
