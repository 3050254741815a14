"""Turns become plain text for templates that know no system message, no tools or no calls."""

import json

from octavo.server.text.template_adaptation import (
    as_user,
    described,
    merged,
    with_short_ids,
    without_calls,
)
from octavo.server.text.turns import Turn, TurnCall

CALL: TurnCall = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
CALLING: Turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Turn = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
USER: Turn = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "description": "{é}"}}


def test_tools_are_described_in_the_first_system_turn() -> None:
    system: Turn = {"role": "system", "content": "Be brief."}
    alone, user = described([USER], [TOOL])
    assert (alone["role"], user) == ("system", USER)
    assert json.dumps(TOOL, ensure_ascii=False) in alone["content"]
    assert described([system, USER], [TOOL]) == [{**system, "content": "Be brief.\n\n" + alone["content"]}, USER]
    assert described([], [TOOL]) == [alone]


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


def test_calls_and_results_are_not_merged() -> None:
    assert merged([CALLING, RESULT, RESULT, USER, USER]) == [CALLING, RESULT, RESULT, {**USER, "content": "a\n\na"}]


def test_only_system_turns_become_those_of_the_user() -> None:
    assert as_user({"role": "system", "content": "a"}) == USER
    assert as_user(RESULT) == RESULT
