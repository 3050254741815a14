"""Tests that gpt-oss's template renders harmony: tools as TypeScript, calls, results, and what is left of reasoning."""

from typing import Any

import pytest

from octavo.server.text import harmony
from octavo.server.text.call_formats import HARMONY
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.traced import of_template, plain
from octavo.server.text.turns import Turn
from tests.server.text.real_templates import ALL, SPECIAL

GPT_OSS = ChatTemplate(ALL["gpt-oss"], SPECIAL)
SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT.\n\nReasoning: {}\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Gets the weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city"},
            "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["location"],
    },
}
TOLD = """# Tools

## functions

namespace functions {

// Gets the weather.
type get_weather = (_: {
// The city
location: string,
format?: "celsius" | "fahrenheit", // default: celsius
days?: number[],
}) => any;

type now = () => any;

} // namespace functions<|end|>"""
USER: Turn = {"role": "user", "content": "a"}


def called(**more: Any) -> Turn:
    function: Any = {"name": "f", "arguments": {"x": 1}}
    turn: Any = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    return {**turn, **more}


RESULT: Turn = {"role": "tool", "content": "7", "tool_call_id": "c"}
ANALYSIS = "<|start|>assistant<|channel|>analysis<|message|>So.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALLED = '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>'
ANSWERED = '<|start|>functions.f to=assistant<|channel|>commentary<|message|>"7"<|end|>'


def rendered(*turns: Turn, rendering: Rendering | None = None) -> str:
    return plain(GPT_OSS.render(turns, rendering or Rendering())).partition("<|start|>user<|message|>a<|end|>")[2]


def test_the_format_is_recognised() -> None:
    known = GPT_OSS.capabilities
    assert known.call_format == HARMONY and known.tools


def test_tools_and_instructions() -> None:
    tools = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now"}}]
    turns: list[Turn] = [{"role": "system", "content": "Be kind."}, USER]
    text = plain(GPT_OSS.render(turns, Rendering(tools, variables={"reasoning_effort": "high"})))
    assert text == (
        SYSTEM.format("high") + "\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>"
        f"<|start|>developer<|message|># Instructions\n\nBe kind.\n\n{TOLD}"
        "<|start|>user<|message|>a<|end|><|start|>assistant"
    )


def test_reasoning_is_shown_beside_calls_until_an_answer_follows() -> None:
    calling = called(reasoning_content="So.")
    open_end = "<|start|>assistant"
    assert rendered(USER, calling, RESULT) == ANALYSIS + CALLED + ANSWERED + open_end
    said: Turn = {"role": "assistant", "content": "b", "reasoning_content": "Hm."}
    final = "<|start|>assistant<|channel|>final<|message|>b<|end|>"
    again = "<|start|>user<|message|>c<|end|>"
    history = rendered(USER, calling, RESULT, said, {"role": "user", "content": "c"})
    assert history == CALLED + ANSWERED + final + again + open_end


def test_text_beside_a_call_is_shown_before_it_and_not_lost_later() -> None:
    calling = called(content="Plan.", reasoning_content="So.")
    shown = FINAL + "Plan.<|end|>" + ANALYSIS + CALLED + ANSWERED + "<|start|>assistant"
    assert rendered(USER, calling, RESULT) == shown
    said: Turn = {"role": "assistant", "content": "b"}
    history = rendered(USER, calling, RESULT, said, USER)
    assert history.startswith(FINAL + "Plan.<|end|>" + CALLED + ANSWERED + FINAL + "b<|end|>")


def test_several_calls_of_a_turn_follow_each_other_and_its_reasoning_comes_once() -> None:
    turn = called(reasoning_content="So.")
    turn["tool_calls"] = [{**turn["tool_calls"][0], "id": id} for id in ("c", "d")]
    results: list[Turn] = [RESULT, {**RESULT, "tool_call_id": "d"}]
    assert rendered(USER, turn, *results) == ANALYSIS + (CALLED + ANSWERED) * 2 + "<|start|>assistant"


def test_a_last_message_that_goes_on() -> None:
    said: Turn = {"role": "assistant", "content": "b", "reasoning_content": "So."}
    text = rendered(USER, said, rendering=Rendering(continue_final=True))
    assert text == ANALYSIS + "<|start|>assistant<|channel|>final<|message|>b"


@pytest.mark.parametrize(
    ("prompt", "header"),
    [
        (of_template("<|start|>user<|message|>a<|end|><|start|>assistant"), "<|start|>assistant"),
        (
            of_template("<|start|>assistant<|channel|>final<|message|>b"),
            "<|start|>assistant<|channel|>final<|message|>",
        ),
        (of_template("<|start|>assistant<|message|>b<|end|>"), ""),
        (of_template("hi"), ""),
    ],
)
def test_the_prompt_tells_how_the_answer_begins(prompt: Any, header: str) -> None:
    assert harmony.begun_by(prompt) == header


@pytest.mark.parametrize(
    "call",
    [
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
    ],
)
def test_calls_are_recognised_in_either_place(call: str) -> None:
    assert (harmony.arguments_of(call, "f") or "").startswith('{"x": 1}')
    assert harmony.arguments_of(call, "ff") is harmony.arguments_of(call.replace("<|call|>", ""), "f") is None
