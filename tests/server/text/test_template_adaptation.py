"""Turns become plain text for templates that know no system message, no tools or no calls."""

import json

from octavo.server.text.template_adaptation import as_user, described, merged
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


def test_calls_and_results_are_not_merged() -> None:
    assert merged([CALLING, RESULT, RESULT, USER, USER]) == [CALLING, RESULT, RESULT, {**USER, "content": "a\n\na"}]


def test_a_merged_turn_has_a_name_only_if_all_of_it_has() -> None:
    ada: Turn = {**USER, "name": "Ada"}
    assert merged([ada, ada]) == [{**ada, "content": "a\n\na"}]
    assert merged([ada, USER, {**USER, "name": "Bob"}]) == [{**USER, "content": "a\n\na\n\na"}]


def test_only_system_turns_become_those_of_the_user() -> None:
    assert as_user({"role": "system", "content": "a"}) == USER
    assert as_user(RESULT) == RESULT


def test_many_turns_are_merged_as_two_are() -> None:
    assert merged([USER] * 3000) == [{**USER, "content": "\n\n".join([USER["content"]] * 3000)}]
    assert merged([USER, {**USER, "content": ""}, USER]) == [{**USER, "content": "a\n\na"}]
