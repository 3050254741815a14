"""Tests that templates tell how the model reasons, and that prompts tell whether the answer begins within reasoning."""

import pytest

from octavo.server.text.reasoning_tags import THINK, ReasoningTags
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.traced import Traced, of_template
from octavo.server.text.turns import Turn
from tests.server.text.real_templates import ALL, SPECIAL
from tests.server.text.test_template import CHATML

REASON = {"deepseek", "gemma_4", "qwen_3", "qwen_3.5", "qwen_3_hybrid", "qwen_3_thinking"}
OPENS = CHATML + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
CLOSES = CHATML + "{% if add_generation_prompt %}<assistant><think>\n\n</think>\n\n{% endif %}"
SHOWS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content and not messages[loop.index0 + 1:] | "
    "selectattr('role', 'equalto', 'user') | list %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
CUTS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</seed:think>')[-1] }}{% endfor %}"


def tags_of(source: str) -> ReasoningTags | None:
    return ChatTemplate(source, SPECIAL).capabilities.reasoning


@pytest.mark.parametrize(
    ("source", "start"), [(OPENS, "<think>"), (CLOSES, "<think>"), (SHOWS, "[THINK]"), (CUTS, "<seed:think>")]
)
def test_tags_are_found_by_rendering(source: str, start: str) -> None:
    tags = tags_of(source)
    assert tags is not None and tags.start == start


@pytest.mark.parametrize("name", ALL)
def test_published_templates(name: str) -> None:
    assert tags_of(ALL[name]) == (THINK if name in REASON else None)


def turns() -> list[Turn]:
    return [{"role": "user", "content": "a"}]


def test_the_prompt_tells_where_the_answer_begins() -> None:
    assert THINK.opened_by(ChatTemplate(OPENS).render(turns()))
    assert not THINK.opened_by(ChatTemplate(OPENS).render(turns(), Rendering(add_generation_prompt=False)))
    assert not THINK.opened_by(ChatTemplate(CLOSES).render(turns()))
    assert not THINK.opened_by(ChatTemplate(CHATML).render(turns()))


def test_a_client_does_not_open_it() -> None:
    assert not THINK.opened_by(Traced("hi <think>\n"))
    assert not THINK.opened_by(of_template("<user>") + "<think>" + of_template("\n"))
    assert THINK.opened_by(of_template("<user>") + of_template("<think>"))


def test_a_beginning_of_the_client_s_may_be_within_reasoning() -> None:
    assert THINK.open_in("<think>\nSo")
    assert not THINK.open_in("<think>\nSo</think>Two")
    assert not THINK.open_in("Two")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_templates_read_reasoning_by_each_of_its_names(key: str) -> None:
    source = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ m.{key} }}}}|{{{{ m.content }}}}{{% endfor %}}"
    history: list[Turn] = [*turns(), {"role": "assistant", "content": "b", "reasoning_content": "So"}]
    assert ChatTemplate(source).render(history) == "<user>|a<assistant>So|b"
