"""A Traced has the characters that a str would have, and knows which of them the template wrote."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.traced import Traced, of_template, origins, plain
from octavo.server.text.turns import Turn

OWN, GIVEN = of_template("<Own> "), "given < \n"


def shown(text: str) -> str:
    """Returns the text with a dot for each character that a client wrote."""
    return "".join(letter if own else "." for letter, own in zip(text, origins(text), strict=True))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda own, given: own + given, "<Own> ........."),
        (lambda own, given: given + own, ".........<Own> "),
        (lambda own, given: given.join([own, own]), "....................."),
        (lambda own, given: own.join([given, "é"]), ".........<Own> ."),
        (lambda own, given: own * 2 + 2 * own, "<Own> <Own> <Own> <Own> "),
        (lambda own, given: (own + given)[3:8], "n> .."),
        (lambda own, given: (own + given)[-1], "."),
        (lambda own, given: (own + given)[::-1], "......... >nwO<"),
        (lambda own, given: (given + own).strip(), ".........<Own>"),
        (lambda own, given: (own + given).strip("<"), "Own> ........."),
        (lambda own, given: (own + given).rstrip(), "<Own> ......."),
        (lambda own, given: (own + given).replace("n", own), "<Ow<Own> > ....<Own> ...."),
        (lambda own, given: (own + given).replace("n", "it"), "<Ow..> .........."),
        (lambda own, given: (own + given).removeprefix("<O").removesuffix("\n"), "wn> ........"),
        (lambda own, given: (own + given).split("<")[2], ".."),
        (lambda own, given: (own + given).split()[1] + (own + given).split(None, 1)[0], ".....<Own>"),
        (lambda own, given: (own + given).rsplit("<", 1)[0], "<Own> ......"),
        (lambda own, given: (given + own).splitlines()[1] + (given + own).splitlines(True)[0], "<Own> ........."),
        (lambda own, given: (own + given).partition("<")[1] + given, "<........."),
        (lambda own, given: (own + given).rpartition("<")[0], "<Own> ......"),
        (lambda own, given: (own + given).rpartition("!")[2], "<Own> ........."),
        (lambda own, given: (own + given).upper(), "<OWN> ........."),
        (lambda own, given: (own + "ß").upper(), "........"),
        (lambda own, given: own.title() + own.lower() + own.capitalize(), "<Own> <own> <own> "),
        (lambda own, given: (own + "%s%%%d") % (given, 7), "<Own> ..........."),
        (lambda own, given: str(own + given), "<Own> ........."),
        (lambda own, given: pickle.loads(pickle.dumps(own + given)), "<Own> ........."),
        (lambda own, given: own.center(9), "........."),
        (lambda own, given: own.replace("", given), "." * 69),
    ],
)
def test_operations(operation: Callable[[Any, Any], str], expected: str) -> None:
    result = operation(OWN, GIVEN)
    assert shown(result) == expected
    assert result == operation(plain(OWN), GIVEN) and type(plain(result)) is str


def test_conversions_follow_texts_and_lose_what_is_not_followed() -> None:
    form = of_template("<%s|%(a)s>")
    assert shown(of_template("<%5s|%%%s>") % ("ab", OWN)) == "<.....|%<Own> >"
    assert shown(of_template("<%(b)s|%(a)s>") % {"a": "x", "b": OWN}) == "<<Own> |.>"
    assert shown(of_template("<%*d>") % (3, 4)) == "....."
    with pytest.raises(TypeError):
        form % "x"


def test_operations_refuse_what_str_refuses() -> None:
    for operation in (lambda: OWN + 1, lambda: 1 + OWN, lambda: OWN.join([1]), lambda: OWN * "a", lambda: OWN[9]):
        with pytest.raises((TypeError, IndexError)):
            operation()


def render(source: str, content: str = "a<b ", **variables: Any) -> Traced:
    turns: list[Turn] = [{"role": "user", "content": content}]
    return ChatTemplate(source, {"bos_token": "<s>"}).render(turns, Rendering(variables=variables))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<x>{{ messages[0].content }}</x>", "<x>....</x>"),
        ("{{ bos_token + messages[0]['role'] ~ messages[0]['content'] ~ 1 }}", "<s>user....."),
        ("{{ '<' ~ messages[0].role | upper ~ '>' ~ messages[0].content | trim | upper }}", "<USER>..."),
        ("{% set t %}<t>{{ messages[0].content }}{% endset %}{{ t ~ t | trim }}", "<t>....<t>..."),
        ("{% macro m(x, y='<y>') %}<m>{{ x }}{{ y }}{% endmacro %}{{ m(messages[0].content) }}", "<m>....<y>"),
        ("{% set ns = namespace(t='<n>') %}{% set ns.t = ns.t + 'x' %}{{ ns.t }}", "<n>x"),
        ("{% set names = {'user': '<|user|>'} %}{{ names[messages[0].role] }}{{ ['<l>'][0] }}", "<|user|><l>"),
        ("{{ ['<a>', messages[0].content, '<b>'] | join }}{{ ['x', 'y'] | join('<j>') }}", "<a>....<b>x<j>y"),
        ("{{ '<j>'.join(['x', messages[0].content]) }}", "x<j>...."),
        ("{{ messages[0].content | replace('<', '<|r|>') }}", ".<|r|>.."),
        ("{{ messages[0].content.replace('<', '<|r|>') }}", ".<|r|>.."),
        ("{{ '<{}>{}'.format(messages[0].role, messages[0].content) }}", "<user>...."),
        ("{{ '<{0[role]}>{x!r:>7}{{'.format(messages[0], x='a') }}", "<user>.......{"),
        ("{{ '<{role}>'.format_map(messages[0]) }}{{ '{:{}}'.format('a', 2) }}", "<user>.."),
        ("{{ '<%s>%s' | format(messages[0].role, messages[0].content) }}", "<user>...."),
        ("{{ '<%s>' % messages[0].role }}{{ '<a>' if true else '' }}{{ x | default('<d>') }}", "<user><a><d>"),
        ("{% filter trim %} <f>{{ messages[0].content }} {% endfilter %}", "<f>..."),
        (
            "{% for m in messages %}{{ loop.cycle('<c>', '') }}{% endfor %}{% generation %}<g>{% endgeneration %}",
            "<c><g>",
        ),
        ("{{ {'<k>': messages[0].content} | tojson }}", "..............."),
        ("{{ messages[0].content ~ bos_token | replace('s', messages[0].content) }}", "....<....>"),
        ("{{ bos_token ~ messages[0].content[:2] ~ messages[0].content | length }}", "<s>..."),
    ],
)
def test_templates(source: str, expected: str) -> None:
    assert shown(render(source)) == expected


def test_a_client_can_name_no_special_token() -> None:
    assert shown(render("{{ bos_token }}<x>", bos_token="<s>")) == "...<x>"
    assert shown(render("{{ bos_token }}<x>")) == "<s><x>"


def test_templates_cannot_reach_the_origins() -> None:
    assert plain(render("{{ bos_token._own is defined }}{{ bos_token.of_template is defined }}")) == "FalseFalse"
