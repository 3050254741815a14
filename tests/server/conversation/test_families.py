"""The released models of each family: a conversation with a call becomes their prompt, and their answer comes back."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken

from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client
from tests.server.conversation.test_tools import prompt, roomy, streamed, whole
from tests.server.fake import replay
from tests.server.text.real_templates import ALL, SPECIAL
from tests.server.vocab import EOS, byte_level

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CALL = {"name": "weather", "arguments": '{"city": "Bern", "days": 2}'}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "Sun"},
]
TOOL = json.dumps(WEATHER)
OBJECT = '{"name": "weather", "arguments": {"city": "Bern", "days": 2}}'
LLAMA_OBJECT = '{"name": "weather", "parameters": {"city": "Bern", "days": 2}}'
JSON_CALL = f"<tool_call>\n{OBJECT}\n</tool_call>"
TAGGED_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
QWEN = (
    f"<|im_start|>system\nBe brief.\n\n# Tools\n\n<tools>\n{TOOL}\n</tools>\n\nFor each function call, return a json "
    "object within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    f"<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n{JSON_CALL}<|im_end|>\n"
    "<|im_start|>user\n<tool_response>\nSun\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
CODER = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\n<tools>\n<function>\n<name>weather</name>\n<parameters>\n"
    "<parameter>\n<name>city</name>\n<type>string</type>\n</parameter>\n"
    "<parameter>\n<name>days</name>\n<type>integer</type>\n</parameter>\n"
    '<required>["city"]</required>\n</parameters>\n</function>\n</tools>\n\nIf you choose to call a function ONLY '
    "reply in the following format with NO suffix:\n\n<tool_call>\n<function=example>\n<parameter=one>\nvalue\n"
    f"</parameter>\n</function>\n</tool_call><|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n{TAGGED_CALL}"
    "<|im_end|>\n<|im_start|>user\n<tool_response>\nSun\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n"
)
MISTRAL = (
    f'<s>[AVAILABLE_TOOLS][{TOOL}][/AVAILABLE_TOOLS][INST]Be brief.\n\nRain?[/INST][TOOL_CALLS][{{"name": "weather", '
    '"arguments": {"city": "Bern", "days": 2}, "id": "abcdefghi"}]</s>'
    '[TOOL_RESULTS]{"content": Sun, "call_id": "abcdefghi"}[/TOOL_RESULTS]'
)
LLAMA = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n\n"
    "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with "
    'a JSON.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its '
    "value}.\n\n"
    f"{json.dumps(WEATHER, indent=4)}\n\nRain?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    f"{LLAMA_OBJECT}<|eot_id|>"
    '<|start_header_id|>ipython<|end_header_id|>\n\n"Sun"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GRANITE = (
    "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>tools<|end_of_role|>"
    f"{json.dumps([WEATHER], indent=4)}<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Rain?<|end_of_text|>\n"
    f"<|start_of_role|>assistant<|end_of_role|><|tool_call|>[{OBJECT}]"
    "<|end_of_text|>\n<|start_of_role|>tool<|end_of_role|>Sun<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
)
DESCRIBED = (  # for models that were taught no form: all of it is text
    f"Be brief.\n\nYou can call these functions, each described by a JSON schema:\n<tools>\n{TOOL}\n</tools>\n"
    "To call one, answer with its name and its arguments as JSON, between these tags:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)
RESULT = "<tool_response>\nSun\n</tool_response>"
MIXTRAL = f"<s>[INST] {DESCRIBED}\n\nRain? [/INST]{JSON_CALL}</s>[INST] {RESULT} [/INST]"
QWEN_15 = "".join(
    f"<|im_start|>{role}\n{text}<|im_end|>\n"
    for role, text in (("system", DESCRIBED), ("user", "Rain?"), ("assistant", JSON_CALL), ("user", RESULT))
)
QWEN_15 += "<|im_start|>assistant\n"
OLMOE = (
    f"<s><|system|>\n{DESCRIBED}\n<|user|>\nRain?\n<|assistant|>\n{JSON_CALL}</s>\n<|user|>\n{RESULT}\n<|assistant|>\n"
)
PHI = (
    f"<|system|>\n{DESCRIBED}<|end|>\n<|user|>\nRain?<|end|>\n<|assistant|>\n{JSON_CALL}<|end|>\n"
    f"<|user|>\n{RESULT}<|end|>\n<|assistant|>\n"
)


@dataclass(frozen=True)
class Family:
    """Describes one family's form. The texts of `special` and `shown` are single tokens of its vocabulary."""

    template: str
    prompt: str
    call: str  # CALL as the model writes it
    two: str  # the same call twice
    special: tuple[str, ...] = ()  # decoding hides these
    shown: tuple[str, ...] = ()  # it shows these, which are added tokens, too
    thoughts: str = ""  # what it writes before an answer


TAGS = ("<tool_call>", "</tool_call>")
THOUGHT = "Rain, they ask."
SHOWN = (*TAGS, "<think>", "</think>")
OF_QWEN = ("<|im_start|>", "<|im_end|>")
OF_LLAMA = ("<|python_tag|>", "<|eot_id|>")
OF_MISTRAL = ("[TOOL_CALLS]", "[INST]", "[/INST]", "[TOOL_RESULTS]")
OF_GRANITE = ("<|tool_call|>", "<|start_of_role|>", "<|end_of_role|>")
TWO_JSON, TWO_TAGGED = f"{JSON_CALL}\n{JSON_CALL}", f"{TAGGED_CALL}\n{TAGGED_CALL}"
ONE, TWO = f"[{OBJECT}]", f"[{OBJECT}, {OBJECT}]"
FAMILIES = {
    "Mixtral-8x7B-Instruct": Family("mixtral", MIXTRAL, JSON_CALL, TWO_JSON),
    "Mixtral-8x22B-Instruct": Family("mistral", MISTRAL, "[TOOL_CALLS] " + ONE, "[TOOL_CALLS]" + TWO, OF_MISTRAL),
    "Llama-3.1-Instruct": Family("llama_3.1", LLAMA, LLAMA_OBJECT, f"{LLAMA_OBJECT}; {LLAMA_OBJECT}", OF_LLAMA),
    "Llama-3.1-Instruct, with its tag": Family(
        "llama_3.1",
        LLAMA,
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Bern", "days": 2}}',
        f"<|python_tag|>{LLAMA_OBJECT}; {LLAMA_OBJECT}",
        OF_LLAMA,
    ),
    "Qwen2.5-Instruct": Family("qwen_2.5", QWEN, JSON_CALL, TWO_JSON, OF_QWEN, TAGS),
    "Qwen3-30B-A3B-Instruct-2507": Family("qwen_3_2507", QWEN, JSON_CALL, TWO_JSON, OF_QWEN, TAGS),
    "Qwen3-30B-A3B": Family(
        "qwen_3_hybrid", QWEN, JSON_CALL, TWO_JSON, OF_QWEN, SHOWN, f"<think>\n{THOUGHT}\n</think>\n\n"
    ),
    "Qwen3-30B-A3B-Thinking-2507": Family(
        "qwen_3_thinking", f"{QWEN}<think>\n", JSON_CALL, TWO_JSON, OF_QWEN, SHOWN, f"{THOUGHT}\n</think>\n\n"
    ),
    "Qwen3-Coder-30B-A3B-Instruct": Family("qwen_3_coder", CODER, TAGGED_CALL, TWO_TAGGED, OF_QWEN, TAGS),
    "Qwen3-Coder, whose tags are special": Family("qwen_3_coder", CODER, TAGGED_CALL, TWO_TAGGED, TAGS),
    "Qwen1.5-MoE-A2.7B-Chat": Family("qwen_1.5", QWEN_15, JSON_CALL, TWO_JSON, OF_QWEN),
    "OLMoE-1B-7B-Instruct": Family("olmoe", OLMOE, JSON_CALL, TWO_JSON),
    "Granite-3.1-3B-A800M-Instruct": Family(
        "granite", GRANITE, "<|tool_call|>" + ONE, "<|tool_call|>" + TWO, OF_GRANITE
    ),
    "Granite-3.1, in plain letters": Family("granite", GRANITE, "<tool_call>" + ONE, "<tool_call>" + TWO),
    "Phi-3.5-MoE-Instruct": Family("phi_3", PHI, JSON_CALL, TWO_JSON, ("<|end|>", "<|user|>")),
}


def tokenizer_of(family: Family) -> Tokenizer:
    backend = byte_level().backend
    backend.add_special_tokens(list(family.special))
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.shown])
    return Tokenizer(backend, ChatTemplate(ALL[family.template], SPECIAL))


def answering(family: Family, text: str) -> Client:
    tokenizer = tokenizer_of(family)
    return roomy(replay([*tokenizer.encode(text, add_special_tokens=False), EOS]), tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_with_a_call_becomes_the_prompt_of_the_family(name: str) -> None:
    family = FAMILIES[name]
    client = answering(family, f"{family.thoughts}Yes.")
    assert prompt(client, messages=MESSAGES, tools=[WEATHER]) == family.prompt
    assert whole(client.chat(messages=MESSAGES, tools=[WEATHER]))[0]["content"] == "Yes."


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_of_the_family_comes_back_as_calls(name: str) -> None:
    family = FAMILIES[name]
    asked: dict[str, Any] = {"messages": MESSAGES[:2], "tools": [WEATHER], "max_tokens": 900}
    for text, content, count in (
        (family.call, "", 1),
        (f"Let me see.\n\n{family.call}", "Let me see.", 1),
        (family.two, "", 2),
    ):
        client = answering(family, family.thoughts + text)
        answer = whole(client.chat(**asked))
        assert (answer[0]["content"], answer[0]["calls"]) == (content, [CALL] * count)
        assert answer[0]["finish_reason"] == "tool_calls"
        assert streamed(client.chat(**asked, stream=True)) == answer


@pytest.mark.parametrize("name", FAMILIES)
def test_without_tools_the_prompt_tells_of_none(name: str) -> None:
    text = prompt(answering(FAMILIES[name], "Yes."), messages=MESSAGES[:2])
    assert "Be brief." in text and text.index("Be brief.") < text.index("Rain?")
    assert "weather" not in text and "tool" not in text.lower()


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-30B-A3B-Thinking-2507"])
def test_thoughts_stand_beside_the_answer_and_are_taken_back(name: str) -> None:
    family = FAMILIES[name]
    client = answering(family, family.thoughts + family.call)
    message = client.chat(messages=MESSAGES[:2], tools=[WEATHER], max_tokens=900).json()["choices"][0]["message"]
    assert message["reasoning_content"] == THOUGHT
    thoughtful = {**MESSAGES[2], "reasoning_content": THOUGHT}
    shown = f"<think>\n{THOUGHT}\n</think>\n\n"
    later = prompt(client, messages=[*MESSAGES[:2], thoughtful, MESSAGES[3]], tools=[WEATHER])
    assert shown in later and later.index(shown) < later.index(f"{JSON_CALL}<|im_end|>")
    asked_again = [*MESSAGES[:2], {"role": "assistant", "content": "No.", "reasoning_content": THOUGHT}, MESSAGES[1]]
    assert THOUGHT not in prompt(client, messages=asked_again)


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-30B-A3B-Thinking-2507"])
def test_thinking_is_switched_off_where_the_template_knows_how(name: str) -> None:
    silent = {"chat_template_kwargs": {"enable_thinking": False}}
    text = prompt(answering(FAMILIES[name], "Yes."), messages=MESSAGES[:2], **silent)
    assert text.endswith("<think>\n\n</think>\n\n" if name == "Qwen3-30B-A3B" else "<think>\n")
