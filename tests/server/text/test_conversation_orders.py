"""Conversations in any order are rendered by published templates, in the nearest form that shows all of them."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.conversation.messages import Message, turns_of
from octavo.server.text.call_formats import GRANITE
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.template_capabilities import find_capabilities
from octavo.server.text.turns import Tools, Turn
from tests.server.text.real_templates import ALL, LLAMA_31, MISTRAL, SPECIAL

TEMPLATES = {name: ChatTemplate(source, SPECIAL) for name, source in ALL.items()}
TOOL = {"type": "function", "function": {"name": "toolz", "parameters": {"type": "object", "properties": {}}}}
# It takes roles in turns, but for calls and results, and ids of nine characters.
STRICT = """{%- set ns = namespace(expect="user") %}{{- bos_token }}
{%- for m in messages %}
{%- if m.role == "tool" %}{{- "[RESULT]" + m.content + "[/RESULT]" }}
{%- elif m.tool_calls is defined %}{%- for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{- raise_exception("ids have nine characters") }}{%- endif %}
{{- "[CALL]" + c.function.name + c.function.arguments | tojson }}{%- endfor %}{{- eos_token }}
{%- elif m.role != ns.expect %}{{- raise_exception("roles must take turns: user, assistant, user") }}
{%- elif m.role == "user" %}{%- set ns.expect = "assistant" %}{{- "[ASK]" + m.content + "[/ASK]" }}
{%- elif m.role == "assistant" %}{%- set ns.expect = "user" %}{{- m.content + eos_token }}
{%- else %}{{- raise_exception("only users and assistants speak") }}{%- endif %}
{%- endfor %}"""
FORGETFUL = STRICT.replace(" + c.function.arguments | tojson", "")
ONE_CALL = """{%- for message in messages %}{%- if 'tool_calls' in message %}
{%- if not message.tool_calls | length == 1 %}{{- raise_exception("one call a message") }}{%- endif %}
{{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
{{- message.tool_calls[0].function.arguments | tojson + '}' }}
{%- else %}{{- '<' + message.role + '>' + message.content }}{%- endif %}{%- endfor %}"""


def said(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


def called(*ids: str, content: str | None = None, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return said("assistant", content) | {
        "tool_calls": [{"id": id, "type": "function", "function": function} for id in ids]
    }


def result(id: str, content: str) -> dict[str, Any]:
    return said("tool", content) | {"tool_call_id": id}


def turns(*messages: dict[str, Any]) -> list[Turn]:
    return turns_of([Message.model_validate(message) for message in messages])


def words(messages: list[dict[str, Any]]) -> set[str]:
    return set(re.findall(r"word\d+z", json.dumps(messages)))


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draws messages of all roles in any order; each says a word of its own, or nothing."""
    ids = st.sampled_from(["0", "call_1", "", "123456789", "x" * 200])
    kinds = ["user", "assistant", "system", "developer", "silent", "call", "calls", "text and call", "tool", "tool"]
    messages: list[dict[str, Any]] = []
    for position, kind in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8))):
        word = f"word{position}z"
        arguments = json.dumps({f"word{position}1z": 1})
        match kind:
            case "tool":
                messages.append(result(draw(ids), word))
            case "silent":
                messages.append(said(*draw(st.sampled_from([("user", ""), ("assistant", ""), ("assistant", None)]))))
            case "call" | "text and call":
                messages.append(called(draw(ids), content=word if kind != "call" else None, arguments=arguments))
            case "calls":
                messages.append(called(draw(ids), draw(ids), arguments=arguments))
            case role:
                messages.append(said(role, word))
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, derandomize=True, deadline=None)
@given(messages=conversations(), tools=st.booleans())
def test_any_order_is_rendered_and_nothing_is_lost(name: str, messages: list[dict[str, Any]], tools: bool) -> None:
    text = TEMPLATES[name].render(turns(*messages), Rendering([TOOL] if tools else []))
    assert {word for word in words(messages) if word not in text} == set()
    assert not tools or "toolz" in text


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15, derandomize=True, deadline=None)
@given(messages=conversations())
def test_the_last_message_goes_on(name: str, messages: list[dict[str, Any]]) -> None:
    messages.append(called("1", content="so"))
    text = TEMPLATES[name].render(turns(*messages), Rendering(continue_final=True))
    assert text.endswith('so\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    assert all(word in text for word in words(messages))


CALL, RESULT = "<s>[ASK]a[/ASK][CALL]f{}</s>", "[RESULT]20[/RESULT]"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([said("user", "a"), called("call_1"), result("call_1", "20")], CALL + RESULT),
        (
            [said("user", "a"), called("call_1"), result("call_1", "20"), said("user", "b")],
            f"{CALL}{RESULT}</s>[ASK]b[/ASK]",
        ),
        (
            [said("user", "a"), called("call_1"), result("call_1", "20"), said("system", "b")],
            f"{CALL}{RESULT}</s>[ASK]b[/ASK]",
        ),
        ([said("user", "a"), called("call_1"), said("user", "b")], f"{CALL}</s>[ASK]b[/ASK]"),
        ([said("assistant", "hello"), said("user", "b")], "<s>[ASK][/ASK]hello</s>[ASK]b[/ASK]"),
        ([said("system", "s"), said("assistant", "hello"), said("user", "b")], "<s>[ASK]s[/ASK]hello</s>[ASK]b[/ASK]"),
        ([said("assistant", "hello")], "<s>[ASK][/ASK]hello</s>"),
        ([said("system", "s")], "<s>[ASK]s[/ASK]"),
        ([result("call_1", "20")], "<s>[ASK]<tool_response>\n20\n</tool_response>[/ASK]"),
        ([said("user", "a"), said("assistant", None), said("user", "b")], "<s>[ASK]a[/ASK]</s>[ASK]b[/ASK]"),
    ],
)
def test_a_template_that_wants_turns_to_alternate(messages: list[dict[str, Any]], expected: str) -> None:
    assert ChatTemplate(STRICT, SPECIAL).render(turns(*messages)) == expected


@pytest.mark.parametrize("last", [said("user", "b"), said("system", "b"), said("developer", "b")])
def test_calls_are_text_where_a_template_forgets_their_arguments(last: dict[str, Any]) -> None:
    messages = [said("user", "a"), called("0", arguments='{"x": 1}'), result("0", "20"), last]
    written = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    answered = "<tool_response>\n20\n</tool_response>"
    expected = f"<s>[ASK]a[/ASK]{written}</s>[ASK]{answered}\n\nb[/ASK]"
    assert ChatTemplate(FORGETFUL, SPECIAL).render(turns(*messages)) == expected


def test_each_call_precedes_its_result_where_a_turn_takes_one() -> None:
    messages = [said("user", "a"), called("c1", "c2"), result("c1", "20"), result("c2", "21")]
    one = '{"name": "f", "parameters": {}}<tool>'
    assert ChatTemplate(ONE_CALL).render(turns(*messages)) == f"<user>a{one}20{one}21"
    assert ChatTemplate(ONE_CALL).render(turns(*messages[:2], *messages[:1:-1])) == f"<user>a{one}20{one}21"


def test_llama_keeps_the_text_beside_a_call() -> None:
    messages = [said("user", "a"), called("1", "2", content="Let me see."), result("1", "20"), result("2", "21")]
    text = ChatTemplate(LLAMA_31, SPECIAL).render(turns(*messages))
    assert re.findall(r"Let me see|\"name\": \"f\"|20|21", text)[1:] == [
        "Let me see",
        '"name": "f"',
        "20",
        '"name": "f"',
        "21",
    ]


def test_llama_takes_a_greeting_for_the_users_words_only_without_tools() -> None:
    greeting = turns(said("assistant", "hello"), said("user", "b"))
    template = ChatTemplate(LLAMA_31, SPECIAL)
    assert "<|start_header_id|>assistant<|end_header_id|>\n\nhello" in template.render(greeting, Rendering([TOOL]))
    assert "<|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>" not in template.render(greeting)


def test_mistral_shows_the_system_message_also_after_a_result() -> None:
    messages = turns(said("system", "s."), said("user", "a"), called("123456789"), result("123456789", "20"))
    template = ChatTemplate(MISTRAL, SPECIAL)
    begun = template.render(messages[:2], Rendering([TOOL]))
    assert begun.endswith("[INST]s.\n\na[/INST]")
    assert template.render(messages, Rendering([TOOL])).startswith(begun)


def test_mistral_shows_the_tools_once_however_many_turns_say_nothing() -> None:
    steps = [step for id in "123" for step in (called(id, content=f"step {id}"), result(id, "20"))]
    text = ChatTemplate(MISTRAL, SPECIAL).render(turns(said("user", "a"), *steps), Rendering([TOOL]))
    assert text.count("[AVAILABLE_TOOLS]") == 1 and text.count("step ") == text.count("[TOOL_CALLS]") == 3


AGENT = [
    *(said("user", "word1z"), called("call_1", content="word2z"), result("call_1", "word3z"), said("system", "word4z")),
    *(called("call_2"), result("call_2", "word5z"), said("system", "word6z"), said("assistant", "word7z")),
    *(said("user", "word8z"), called("call_3"), said("user", "word9z"), said("user", "word10z")),
]


MARK_THE_LAST = {"qwen_3", "qwen_3_hybrid", "qwen_3_thinking"}  # They mark the last answer's thoughts.


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - MARK_THE_LAST))
def test_later_messages_do_not_change_the_earlier(name: str) -> None:
    template = TEMPLATES[name]
    texts = [
        template.render(turns(*AGENT[:length]), Rendering(add_generation_prompt=False))
        for length in range(1, len(AGENT) + 1)
    ]
    closed = re.compile(r"(\s*(<[^<>]*>|\[/INST\])\s*)*$")  # the last turn's end may come later
    assert [
        later for earlier, later in zip(texts, texts[1:], strict=False) if not later.startswith(closed.sub("", earlier))
    ] == []


@pytest.mark.parametrize(
    "source", [*ALL.values(), STRICT, ONE_CALL, "{{ messages.x.y }}", "", "{% for m in messages %}{% endfor %}"]
)
def test_a_template_is_tried_a_bounded_number_of_times(source: str) -> None:
    template, tries = ChatTemplate(source, SPECIAL), []

    def render(turns: Any, tools: Tools) -> str:
        tries.append(len(turns))
        return template._render(turns, Rendering(tools))

    assert find_capabilities(render) == template.capabilities
    assert len(tries) < 120 and max(tries) < 12


def test_a_template_that_raises_anything_can_be_tried() -> None:
    def render(turns: Any, tools: Tools) -> str:
        raise RecursionError

    assert not find_capabilities(render).complete


@pytest.mark.parametrize("name", ["qwen_2.5", "llama_3.1", "qwen_3.5"])
def test_a_template_for_tools_alone_takes_a_conversation_without_them(name: str) -> None:
    template = ChatTemplate("{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}" + ALL[name], SPECIAL)
    assert template.capabilities == TEMPLATES[name].capabilities
    assert "a" in template.render(turns(said("user", "a")))


def test_results_of_calls_that_are_text_come_in_the_order_of_the_calls() -> None:
    messages = turns(said("user", "a"), called("1", "2"), result("2", "21"), result("1", "20"))
    text = TEMPLATES["granite"].render(messages, Rendering([TOOL]))
    assert text.count("<|tool_call|>[") == 1 and text.index("end_of_role|>20<") < text.index("end_of_role|>21<")


def test_arguments_that_are_no_json_do_not_change_the_form_of_the_others() -> None:
    messages = turns(said("user", "a"), called("1", arguments='{"x": 1}'), called("2", arguments='{"y'))
    text = TEMPLATES["qwen_3_coder"].render(messages, Rendering([TOOL]))
    assert "<function=f>\n<parameter=x>\n1\n</parameter>" in text
    assert '<function=f>\n<parameter=arguments>\n{"y\n</parameter>' in text


def test_only_a_form_that_the_template_describes_itself_is_taken_for_its_own() -> None:
    silent = ALL["granite"].replace("<|tool_call|>", "text")
    always = ALL["granite"].replace("You are Granite.", "You may write <|tool_call|>.")
    deaf = ALL["granite"].replace("for m in turns", "for m in turns if m['role'] != 'tool'")
    forms = [ChatTemplate(source, SPECIAL).capabilities.call_format for source in (silent, always, deaf)]
    assert forms == [None, None, None]
    assert ChatTemplate(ALL["granite"], SPECIAL).capabilities.call_format == GRANITE
