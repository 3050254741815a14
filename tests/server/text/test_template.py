"""Chat templates render as in transformers; what a template refuses is folded or, if that fails, refused clearly."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.server.http.errors import InvalidRequest, StartupError
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.turns import Turn

MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MIXTRAL_WITH_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}"
    "[{{ message['role'] }}]{% if loop.first and system is defined %}{{ system }}|{% endif %}{{ message['content'] }}"
    "{% endfor %}"
)
MISTRAL_TOOLS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{% if loop.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% endif %}[INST]{{ message.content }}[/INST]"
    "{% elif message.role == 'tool' %}{% if message.tool_call_id | length != 9 %}{{ raise_exception('9!') }}{% endif %}"
    "[TOOL_RESULTS]{{ {'content': message.content, 'call_id': message.tool_call_id} | tojson }}[/TOOL_RESULTS]"
    "{% elif message.tool_calls is defined %}[TOOL_CALLS][{% for call in message.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}"
    "{% endfor %}]{{ eos_token }}{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
POETIC = MIXTRAL + "{% if 'poem' in messages[-1].content %}{{ raise_exception('no poems') }}{% endif %}"
CHATML = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def turns(*pairs: tuple[str, str]) -> list[Turn]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_a_plain_conversation() -> None:
    text = ChatTemplate(MIXTRAL, SPECIAL).render(turns(("user", "a"), ("assistant", "b"), ("user", "c")))
    assert text == "<s>[INST] a [/INST]b</s>[INST] c [/INST]"


def test_a_system_message_is_folded_into_the_first_user_turn() -> None:
    text = ChatTemplate(MIXTRAL, SPECIAL).render(turns(("system", "be brief"), ("user", "hi")))
    assert text == "<s>[INST] be brief\n\nhi [/INST]"


def test_a_system_message_later_on_is_folded_where_it_stands() -> None:
    messages = turns(("user", "a"), ("assistant", "b"), ("system", "be brief"), ("user", "c"))
    assert ChatTemplate(MIXTRAL, SPECIAL).render(messages) == "<s>[INST] a [/INST]b</s>[INST] be brief\n\nc [/INST]"


def test_turns_of_one_role_are_merged() -> None:
    messages = turns(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e"))
    assert ChatTemplate(MIXTRAL, SPECIAL).render(messages) == "<s>[INST] a\n\nb [/INST]c\n\nd</s>[INST] e [/INST]"


def test_a_template_that_takes_one_system_message_first() -> None:
    template = ChatTemplate(MIXTRAL_WITH_SYSTEM, SPECIAL)
    assert template.render(turns(("system", "s"), ("user", "a"), ("user", "b"))) == "<s>[user]s|a\n\nb"
    assert template.render(turns(("user", "a"), ("system", "s"))) == "<s>[user]a\n\ns"
    both = turns(("system", "s"), ("system", "t"), ("user", "a"))
    assert template.render(both) == "<s>[user]s|t\n\na"


def test_a_template_that_takes_everything_gets_everything() -> None:
    messages = turns(("user", "a"), ("user", "b"), ("system", "c"), ("system", "d"))
    assert ChatTemplate(CHATML).render(messages) == "<user>a\n<user>b\n<system>c\n<system>d\n"


def test_a_template_that_drops_the_system_message_silently() -> None:
    silent = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert ChatTemplate(silent).render(turns(("system", "s"), ("user", "a"))) == "<user>s<user>a"


def exchange(id: str) -> list[Turn]:
    function: Any = {"name": "f", "arguments": {"x": 1}}
    calling: Turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }
    return [*turns(("user", "a")), calling, {"role": "tool", "content": "7", "tool_call_id": id}]


def test_a_template_with_tools_gets_them_and_the_ids_it_demands() -> None:
    template = ChatTemplate(MISTRAL_TOOLS, SPECIAL)
    found = template.capabilities
    assert (found.tools, found.tool_calls, found.short_ids_only) == (True, True, True)
    tool = {"type": "function", "function": {"name": "f"}}
    text = template.render(turns(("user", "a")), Rendering(tools=[tool]))
    assert text == f"<s>[AVAILABLE_TOOLS][{json.dumps(tool)}][/AVAILABLE_TOOLS][INST]a[/INST]"
    assert template.render(exchange("abcdefghi")) == (
        '<s>[INST]a[/INST][TOOL_CALLS][{"name": "f", "arguments": {"x": 1}, "id": "abcdefghi"}]</s>'
        '[TOOL_RESULTS]{"content": "7", "call_id": "abcdefghi"}[/TOOL_RESULTS]'
    )
    assert template.render(exchange("call_of_another_server")).count("9!") == 0


def test_a_template_without_tools_gets_them_as_text() -> None:
    template = ChatTemplate(MIXTRAL, SPECIAL)
    found = template.capabilities
    assert (found.tools, found.tool_calls, found.short_ids_only) == (False, False, False)
    tool = {"type": "function", "function": {"name": "f"}}
    text = template.render(turns(("user", "a")), Rendering(tools=[tool]))
    assert text.startswith("<s>[INST] ") and json.dumps(tool) in text and text.endswith("\n\na [/INST]")
    assert template.render([*exchange("1"), *turns(("user", "b"))]) == (
        '<s>[INST] a [/INST]<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call></s>'
        "[INST] <tool_response>\n7\n</tool_response>\n\nb [/INST]"
    )


def test_what_a_template_refuses_in_any_form_is_refused_with_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="no poems") as caught:
        ChatTemplate(POETIC, SPECIAL).render(turns(("assistant", "a"), ("user", "a poem")))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ messages[7].content.x }}", "{{ 1 // 0 }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_is_a_clear_refusal(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate(source).render(turns(("user", "a")))


def test_the_sandbox_holds() -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.mro() }}"):
        with pytest.raises(InvalidRequest):
            ChatTemplate(source).render(turns(("user", "a")))


def test_the_environment_is_that_of_transformers() -> None:
    source = (
        "{% for m in messages %}\n  {% if loop.index0 == 1 %}\n    {% break %}\n  {% endif %}\n{{ m | tojson }}\n"
        "{% endfor %}{% generation %}x{% endgeneration %}{{ strftime_now('%Y')[:2] }}"
        "{{ tools is none }}{{ add_generation_prompt }}"
    )
    text = ChatTemplate(source).render(turns(("user", "<é>"), ("assistant", "no")))
    assert text == '{"role": "user", "content": "<é>"}\nx20TrueTrue'


def test_from_directory(tmp_path: Path) -> None:
    assert ChatTemplate.from_directory(tmp_path) is None
    added = {"content": "<s>", "lstrip": False}
    config = {"chat_template": MIXTRAL, "bos_token": added, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.from_directory(tmp_path)
    assert template is not None
    assert template.render(turns(("user", "a"), ("assistant", "b"))) == "<s>[INST] a [/INST]b</s>"
    (tmp_path / "chat_template.jinja").write_text("from the file {{ bos_token }}")
    template = ChatTemplate.from_directory(tmp_path)
    assert template is not None and template.render(turns(("user", "a"))) == "from the file <s>"


def test_a_named_list_of_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_directory(tmp_path)
    assert template is not None and template.render(turns(("user", "a"))) == "plain"
    assert template.for_tools.render(turns(("user", "a"))) == "tools"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    assert ChatTemplate.from_directory(tmp_path) is None


def test_a_file_for_conversations_with_tools(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("plain")
    alone = ChatTemplate.from_directory(tmp_path)
    assert alone is not None and alone.for_tools is alone
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools {{ bos_token }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    template = ChatTemplate.from_directory(tmp_path)
    assert template is not None and template.for_tools.render(turns(("user", "a"))) == "tools <s>"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{% if %}"})),
        ("tokenizer_config.json", json.dumps({"chat_template": 5})),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default"}]})),
        ("chat_template.jinja", "{% for x in %}"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StartupError, match="again|correct"):
        ChatTemplate.from_directory(tmp_path)


def test_files_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(StartupError):
        ChatTemplate.from_directory(tmp_path)
