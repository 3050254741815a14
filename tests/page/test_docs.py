"""/docs shows every operation and parameter in a browser, and lets the reader try every call."""

import httpx
from playwright.sync_api import Page, expect

from tests.e2e.harness import Server


def opened(page: Page, server: Server, operation: str) -> None:
    page.goto(f"{server.url}/docs")
    page.locator(f"#{operation} > summary").click()


def test_every_operation_and_parameter_is_shown(page: Page, server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    page.goto(f"{server.url}/docs")
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    expect(page.locator("details")).to_have_count(len(ids))
    opened(page, server, "create_chat_completion")
    shown = page.locator("#create_chat_completion table").first.inner_text()
    shown_words = " ".join(shown.split())  # a browser shows a line break in a description as a space
    for name, schema in document["components"]["schemas"]["ChatRequest"]["properties"].items():
        words = " ".join(schema["description"].split("`")[0].split())
        assert name in shown and words in shown_words
    assert "number from 0 to 2" in shown and "messages[].role" in shown


def test_a_call_is_tried(page: Page, server: Server) -> None:
    opened(page, server, "create_chat_completion")
    form, answer = page.locator("#create_chat_completion form"), page.locator("#create_chat_completion pre")
    form.get_by_role("button", name="Send").click()
    expect(answer).to_contain_text('"object": "chat.completion"')
    form.get_by_label("as a stream").check()
    form.get_by_role("button", name="Send").click()
    expect(answer).to_contain_text("data: [DONE]")
    form.get_by_label("Body, as JSON").fill("{")
    form.get_by_role("button", name="Send").click()
    expect(answer).to_contain_text("400")
    expect(answer).to_contain_text("not valid JSON")


def test_a_path_is_filled_in(page: Page, server: Server) -> None:
    opened(page, server, "retrieve_model")
    page.locator("#retrieve_model form").get_by_label("name").fill("tiny")
    page.keyboard.press("Enter")
    expect(page.locator("#retrieve_model pre")).to_contain_text('"id": "tiny"')


def test_it_fits_a_phone(page: Page, server: Server) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    opened(page, server, "create_completion")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
