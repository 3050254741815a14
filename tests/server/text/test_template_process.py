"""Templates of clients may do what they like: they are rendered, or they are refused and the next one is rendered."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.engine import child
from octavo.server.http.errors import ApiError, InvalidRequest
from octavo.server.text import template_process
from octavo.server.text.template import Rendering
from octavo.server.text.template_process import ClientTemplate, TemplateProcess
from octavo.server.text.traced import Traced, origins
from octavo.server.text.turns import Turn

TURNS: list[Turn] = [{"role": "user", "content": "hi"}]
ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
GOOD = "{{ bos_token }}{{ messages[0].content }}{{ mood }}</s>"


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    made = TemplateProcess({"bos_token": "<s>"})
    yield made
    made.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each template a minute, since the machine may be busy."""
    monkeypatch.setattr(template_process, "RENDER_SECONDS", 60)


def render(process: TemplateProcess, source: str = GOOD, **variables: Any) -> Traced:
    return ClientTemplate(process, source).render(TURNS, Rendering(variables=variables))


def test_a_template_renders_as_the_checkpoint_s_would(process: TemplateProcess) -> None:
    text = render(process, mood="!\ud800")
    assert text == "<s>hi!\ud800</s>" and origins(text) == b"\1\1\1\0\0\0\0\1\1\1\1"
    assert ClientTemplate(process, GOOD).capabilities.tools is False
    before = process.pid
    assert render(process) == "<s>hi</s>" and process.pid == before


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ '%900000000d' % 1 }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}",
        "{% for i in range(2000) %}{{ 'a' * 10000 }}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if true %}" * 500 + "{% endif %}" * 500,
        "{% if %}",
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_is_refused(process: TemplateProcess, source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(process, source)
    assert caught.value.param in ("chat_template", "messages")
    assert render(process) == "<s>hi</s>"


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{{ (9 ** 9999999) % 7 }}",  # one operation, which no other thread of the process interrupts
    ],
)
def test_a_template_that_never_ends(process: TemplateProcess, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    render(process)
    before = process.pid
    with monkeypatch.context() as impatient:
        impatient.setattr(template_process, "RENDER_SECONDS", 0.2)
        with pytest.raises(InvalidRequest, match="seconds to render") as caught:
            render(process, source)
    assert caught.value.param == "chat_template"
    assert render(process) == "<s>hi</s>" and process.pid != before


def test_a_process_that_is_killed_from_outside_is_replaced(process: TemplateProcess) -> None:
    render(process)
    assert process._child is not None
    process._child.kill()
    assert render(process) == "<s>hi</s>"
    dying = process._child
    os.kill(dying.pid, signal.SIGSTOP)
    os.kill(dying.pid, signal.SIGKILL)  # It may be dead now or while it is asked.
    try:
        render(process)
    except ApiError as error:
        assert "died of it" in str(error)
    assert render(process) == "<s>hi</s>"


def test_a_process_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "RENDER_SECONDS", 1.0)
    made = TemplateProcess({})
    render(made)
    assert made.pid is not None
    os.kill(made.pid, signal.SIGSTOP)
    with pytest.raises(InvalidRequest, match="seconds to render"):
        ClientTemplate(made, "x" * 2**20)  # The pipe has no room for so much.
    made.close()


def test_a_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_START", "raise SystemExit # {path} {descriptor}")
    with pytest.raises(ApiError, match="did not start"):
        render(TemplateProcess({}))


def test_a_process_that_was_given_up_is_not_replaced() -> None:
    made = TemplateProcess({})
    render(made)
    made.give_up()
    with pytest.raises(ApiError):
        render(made)
    assert made.pid is None


def test_the_process_ends_with_its_parent_whatever_it_does(tmp_path: Path) -> None:
    """A parent that is killed cannot end anybody."""
    code = (
        "import os, signal; from tests.server.text.test_template_process import *;"
        "made = TemplateProcess({}); render(made); print(made.pid, flush=True);"
        "made._child._connection.send(template_process.Question(ENDLESS)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert parent.returncode == -signal.SIGKILL
    assert _ends(int(parent.stdout))


def _ends(pid: int) -> bool:
    """Waits until the process is gone; a zombie, which nobody may have reaped, counts as gone."""
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
