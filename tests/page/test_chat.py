"""The page works in a browser: one can ask, stop and ask again, and the browser keeps the conversations."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.harness import Server

UNFINISHED = "word word{until never} word"
LATER = 24 * 60 * 60  # seconds of the page's clock, which some tests set
STATS = re.compile(r"^\d+ tokens · [\d.]+ tokens/s · first token after [\d.]+ s$")


def opened(page: Page, server: Server) -> Page:
    page.goto(server.url)
    expect(page.locator("#model")).to_have_value("tiny")
    return page


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")


def expect_answer(page: Page, text: str) -> None:
    expect(page.locator(".assistant .text").last).to_have_text(text)
    expect(page.locator("#send")).to_be_visible()


def bodies(page: Page) -> list[Any]:
    """Returns a list that collects the bodies of the page's requests from here on."""
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    return sent


def test_an_answer_is_streamed_and_measured(page: Page, server: Server) -> None:
    opened(page, server)
    expect(page.locator("#empty")).to_be_visible()
    sent = bodies(page)
    section = "# One\n\nsome words, and more\n\n"
    ask(page, section + "{until released}" + section * 19)
    expect(page.locator(".assistant h1")).to_have_count(1)  # the first block is there, the last is not
    expect(page.locator("#thread")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#stop")).to_be_visible()
    server.release("released")
    expect(page.locator(".assistant .stats")).to_have_text(STATS)
    expect(page.locator("#thread")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".assistant h1")).to_have_count(20)
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    assert sent[0]["stream_options"] == {"include_usage": True}


def test_reasoning_is_folded_and_not_part_of_the_answer(page: Page, server: Server) -> None:
    opened(page, server)
    deltas = [{"reasoning_content": "So, <b>1</b>"}, {"reasoning_content": " + 1."}, {"content": "Two."}]
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page, "1 + 1?")
    expect_answer(page, "Two.")
    expect(page.locator(".thought")).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(page.locator(".thought")).to_have_text("So, <b>1</b> + 1.")
    page.reload()
    expect(page.locator(".reasoning summary")).to_be_visible()
    expect_answer(page, "Two.")


def test_stop_keeps_what_there_is(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, UNFINISHED)
    expect(page.locator(".assistant .text")).to_contain_text("word word")
    page.locator("#stop").click()
    expect(page.locator(".assistant .stats")).to_contain_text("stopped")
    server.wait_for_load(running=0)  # the server has stopped as well
    ask(page, "go on")
    expect_answer(page, "go on")


def test_a_conversation_is_sent_whole(page: Page, server: Server) -> None:
    opened(page, server)
    sent = bodies(page)
    for text in ("first", "second"):
        ask(page, text)
        expect_answer(page, text)
    said = [(message["role"], message["content"]) for message in sent[1]["messages"]]
    assert said == [("user", "first"), ("assistant", "first"), ("user", "second")]


def test_reload_keeps_the_conversation(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, "**kept**")
    expect_answer(page, "kept")
    stats = page.locator(".assistant .stats").inner_text()
    assert "tokens" in stats
    page.reload()
    expect(page.locator(".assistant strong")).to_have_text("kept")
    expect(page.locator(".user .text")).to_have_text("**kept**")
    expect(page.locator(".assistant .stats")).to_have_text(stats)


def test_reload_amid_an_answer_keeps_its_beginning(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, UNFINISHED)
    expect(page.locator(".assistant .text")).to_contain_text("word word")
    page.reload()
    expect(page.locator(".assistant .text")).to_contain_text("word word")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()


def test_regenerate_replaces_the_answer(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo()
    server.wait_for_health(200)
    opened(page, server)
    ask(page, "answer {n}")
    expect_answer(page, "answer 1")
    page.get_by_role("button", name="Regenerate").click()
    expect_answer(page, "answer 2")
    expect(page.locator("#thread > li")).to_have_count(2)


def test_edit_continues_from_there(page: Page, server: Server) -> None:
    opened(page, server)
    for text in ("one", "two"):
        ask(page, text)
        expect_answer(page, text)
    page.get_by_role("button", name="Edit").first.click()
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    field.fill("never mind")
    page.keyboard.press("Escape")
    expect(page.locator(".user .text").first).to_have_text("one")
    page.get_by_role("button", name="Edit").first.click()
    field.fill("other")
    page.keyboard.press("Enter")
    expect_answer(page, "other")
    expect(page.locator("#thread > li")).to_have_count(2)


def test_settings_reach_the_request(page: Page, server: Server) -> None:
    opened(page, server)
    sent = bodies(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "min_p": 0.05, "max_tokens": 4, "seed": 7}
    for name, value in values.items():
        page.get_by_label(name).fill(str(value))
    page.get_by_role("textbox", name="stop").fill("x y\nz")
    page.get_by_role("button", name="Done").click()
    page.reload()
    expect(page.locator("#model")).to_have_value("tiny")
    ask(page, "abcdefgh")
    expect_answer(page, "abcd")
    expect(page.locator(".assistant .stats")).to_contain_text("cut off at the token limit")
    assert {name: sent[0][name] for name in values} == values
    assert sent[0]["stop"] == ["x y", "z"]
    assert sent[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.keyboard.press("Escape")
    ask(page, "again")
    expect_answer(page, "again")
    assert sent[1].keys() == {"model", "messages", "stream", "stream_options"}


def test_an_answer_without_words(page: Page, server: Server) -> None:
    opened(page, server)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="stop").fill("h")
    page.keyboard.press("Escape")
    ask(page, "hello")
    expect(page.locator(".assistant .note")).to_have_text("The model ended its answer before it said anything.")


def test_several_conversations(page: Page, server: Server) -> None:
    opened(page, server)
    page.on("dialog", lambda dialog: dialog.accept())
    for text in ("first chat", "second chat"):
        page.get_by_role("button", name="New chat").click()
        ask(page, text)
        expect_answer(page, text)
    listed = page.locator("#conversations .choose")
    expect(listed).to_have_text(["second chat", "first chat"])
    listed.last.click()
    expect(page.locator(".user .text")).to_have_text("first chat")
    page.get_by_role("button", name="Delete “first chat”").click()
    expect(listed).to_have_text(["second chat"])
    expect(page.locator("#empty")).to_be_visible()
    page.get_by_role("button", name="Clear all").click()
    expect(listed).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('conversation')).length") == 0


def test_leaving_a_conversation_stops_its_answer(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, UNFINISHED)
    expect(page.locator(".assistant .text")).to_contain_text("word word")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#send")).to_be_visible()
    server.wait_for_load(running=0)
    page.locator("#conversations .choose").click()
    expect(page.locator(".assistant .stats")).to_contain_text("stopped")


def test_an_example_is_a_question(page: Page, server: Server) -> None:
    opened(page, server)
    example = page.locator(".example").first
    text = example.inner_text()
    example.click()
    expect_answer(page, text)


def test_code_is_copied(page: Page, server: Server) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.clock.install(time=0)
    opened(page, server)
    ask(page, "```python\nprint('<b>')\n```")
    expect_answer(page, re.compile("print"))  # type: ignore[arg-type]
    page.clock.pause_at(LATER)
    button = page.locator(".code button")
    button.click()
    expect(button).to_have_text("Copied")
    page.clock.run_for(2000)
    expect(button).to_have_text("Copy")
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')"


@pytest.mark.parametrize("where", ["conversation", "settings"])
def test_a_store_that_somebody_else_wrote_to(page: Page, server: Server, where: str) -> None:
    opened(page, server)
    for value in ("{", "null", json.dumps({"messages": 1})):
        page.evaluate("([key, value]) => localStorage.setItem(`octavo:/:${key}`, value)", [where + ":x", value])
    page.reload()
    ask(page, "still here")
    expect(page.locator("#model")).to_have_value("tiny")
    page.locator("#prompt").press("Enter")
    expect_answer(page, "still here")
