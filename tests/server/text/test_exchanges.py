"""Calls and their results: how they are paired, split, numbered and written as text."""

from dataclasses import replace
from typing import Any

from octavo.server.text.call_formats import GRANITE
from octavo.server.text.exchanges import paired, with_short_ids, with_written_calls, without_calls
from octavo.server.text.template_capabilities import Capabilities, find_capabilities
from octavo.server.text.traced import origins
from octavo.server.text.turns import Turn, TurnCall

CALL: TurnCall = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
CALLING: Turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Turn = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
USER: Turn = {"role": "user", "content": "a"}
SYSTEM: Turn = {"role": "system", "content": "s"}
ALL = find_capabilities(lambda turns, tools: repr((turns, tools)))  # a template that shows everything


def calling(*ids: str, content: str = "") -> Turn:
    return {"role": "assistant", "content": content, "tool_calls": [{**CALL, "id": id} for id in ids]}


def result(id: str, content: str) -> Turn:
    return {"role": "tool", "content": content, "tool_call_id": id}


def order(turns: list[Turn], **capabilities: Any) -> list[str]:
    """Returns the text of each turn, and the ids of its calls."""
    known: Capabilities = replace(ALL, **capabilities)
    return [
        turn["content"] + "".join(f"<{call['id']}>" for call in turn.get("tool_calls", ()))
        for turn in paired(turns, known)
    ]


def test_results_follow_in_the_order_of_their_calls() -> None:
    assert order([calling("a", "b"), result("b", "2"), result("a", "1"), USER]) == ["<a><b>", "1", "2", "a"]


def test_each_call_precedes_its_result_where_a_turn_takes_one_call() -> None:
    turns = [calling("a", "b", content="so"), result("b", "2"), result("a", "1")]
    assert order(turns, parallel_calls=False) == ["so<a>", "1", "<b>", "2"]
    assert order([calling("a", "b"), result("a", "1")], parallel_calls=False) == ["<a>", "1", "<b>"]


def test_text_is_a_turn_of_its_own_where_calls_would_drop_it() -> None:
    assert order([calling("a", content="so"), result("a", "1")], text_with_calls=False) == ["so", "<a>", "1"]
    assert order([calling("a", content=" "), result("a", "1")], text_with_calls=False) == [" <a>", "1"]


def test_ids_need_not_be_known_nor_unique() -> None:
    strange = paired([calling("a", "b"), result("x", "1"), result("b", "2")], ALL)
    assert [turn.get("tool_call_id") for turn in strange] == [None, "a", "b"]
    assert strange[1]["name"] == "f"
    assert order([calling("", ""), result("", "1"), result("", "2")], parallel_calls=False) == ["<>", "1", "<>", "2"]
    assert order([calling("a"), result("a", "1"), result("a", "2")], parallel_calls=False) == ["<a>", "1", "2"]


def test_results_stay_with_their_calls_when_system_messages_stand_between() -> None:
    turns = [calling("a", "b"), result("a", "1"), SYSTEM, result("b", "2"), SYSTEM, USER]
    assert order(turns) == ["<a><b>", "1", "2", "s", "s", "a"]


def test_a_result_without_a_call_is_text_where_the_template_has_no_form_for_it() -> None:
    assert order([USER, RESULT]) == ["a", "7"]
    assert paired([USER, RESULT], replace(ALL, lone_results=False)) == [USER, without_calls(RESULT)]


def test_calls_and_results_as_text() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    assert without_calls(CALLING) == {"role": "assistant", "content": text}
    assert without_calls({**CALLING, "content": "so:"})["content"] == "so:\n" + text
    assert without_calls(RESULT) == {"role": "user", "content": "<tool_response>\n7\n</tool_response>"}
    assert without_calls(USER) == USER


def test_short_ids_still_belong_together() -> None:
    calling, result = with_short_ids(CALLING), with_short_ids(RESULT)
    short = calling["tool_calls"][0]["id"]
    assert len(short) == 9 and short.isalnum() and result["tool_call_id"] == short
    kept: Turn = {**RESULT, "tool_call_id": "abcDEF123"}
    assert with_short_ids(kept) == kept and with_short_ids(USER) == USER
    assert CALLING["tool_calls"][0]["id"] == "call_1"


def test_arguments_that_are_text_are_put_into_an_object_where_a_template_needs_one() -> None:
    broken: TurnCall = {**CALL, "function": {"name": "f", "arguments": '{"x'}}
    turn: Turn = {**CALLING, "tool_calls": [CALL, broken]}
    assert paired([turn], ALL) == [turn]
    changed = paired([turn], replace(ALL, text_arguments=False))[0]["tool_calls"]
    assert [call["function"]["arguments"] for call in changed] == [{"x": "é"}, {"arguments": '{"x'}]
    assert broken["function"]["arguments"] == '{"x'


def test_calls_are_written_in_a_form_whose_marker_is_the_templates_own() -> None:
    two: Turn = {**calling("a", "b"), "content": "so: "}
    written = with_written_calls(two, GRANITE)
    one = '{"name": "f", "arguments": {"x": "é"}}'
    assert written == {"role": "assistant", "content": f"so: <|tool_call|>[{one}, {one}]"}
    assert origins(written["content"]) == bytes(4) + b"\1" * len("<|tool_call|>") + bytes(len(one) * 2 + 4)
    assert with_written_calls(USER, GRANITE) == USER and with_written_calls(RESULT, GRANITE) == RESULT
