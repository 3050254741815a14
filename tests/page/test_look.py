"""The page can be used by keyboard alone and at a phone's width, and is legible in light and dark."""

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.harness import Server
from tests.page.test_chat import UNFINISHED, ask, expect_answer, opened

RICH = (
    "# Title\n\nSome `code` and " + "x" * 200 + "\n\n```python\n" + "y = 1; " * 60 + "\n```\n\n"
    "| " + "wide | " * 30 + "\n|" + "---|" * 30 + "\n\n1. one\n   - two\n\n> https://example.org/" + "z" * 200
)


def focused(page: Page) -> str:
    """Returns the id or the label of what has the focus."""
    name = "document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.textContent"
    return str(page.evaluate(name))


def order_of_focus(page: Page) -> list[str]:
    """Returns what Tab reaches, from the beginning of the page to its end; each shows that it has the focus."""
    page.evaluate("document.querySelector('.skip').focus()")
    names = [focused(page)]
    while names[-1] != "send":
        names.append(pressed(page, "Tab"))
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert (
            names[-1] == "prompt" or page.evaluate(style) == "solid"
        )  # the composer around the prompt shows the focus
    return names


def pressed(page: Page, key: str) -> str:
    page.keyboard.press(key)
    return focused(page)


def test_the_whole_chat_by_keyboard(page: Page, server: Server) -> None:
    opened(page, server)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect_answer(page, "onetwo")
    expect(page.locator(".assistant br")).to_have_count(1)
    expect(page.locator("#prompt")).to_have_value("")
    page.keyboard.type("   ")
    page.keyboard.press("Enter")  # says nothing
    expect(page.locator("#thread > li")).to_have_count(2)
    ask(page, UNFINISHED)
    expect(page.locator(".assistant .text").last).to_contain_text("word")
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .stats").last).to_contain_text("stopped")
    expect(page.locator("#prompt")).to_be_focused()


def test_the_order_of_focus(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, "hi")
    expect_answer(page, "hi")
    sidebar = ["new-chat", "hi", "Delete “hi”", "clear-all", "The API of this server"]
    header = ["model", "open-lens", "theme", "open-settings"]
    thread = ["Copy", "Edit", "Copy", "Regenerate"]
    assert order_of_focus(page) == ["Skip to the message field", *sidebar, *header, *thread, "prompt", "send"]
    page.locator(".skip").press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


def test_every_control_has_a_name(page: Page, server: Server) -> None:
    opened(page, server)
    ask(page, RICH)
    expect(page.locator(".assistant .stats")).to_contain_text("tokens")
    nameless = """[...document.querySelectorAll("button, input, textarea, select")].filter(
        (node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)"""
    assert page.evaluate(nameless) == []
    repeated = (
        """[...document.querySelectorAll("[id]")].map(({ id }) => id).filter((id, i, all) => all.indexOf(id) < i)"""
    )
    assert page.evaluate(repeated) == []


@pytest.fixture
def phone(browser: Browser) -> Any:
    with browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True) as context:
        yield context.new_page()


def test_a_phone_scrolls_one_way_only(phone: Page, server: Server) -> None:
    opened(phone, server)
    wide = "[document.documentElement, document.getElementById('scroller')].map((node) => node.scrollWidth)"
    assert max(phone.evaluate(wide)) <= 360
    ask(phone, RICH)
    expect(phone.locator(".assistant .stats")).to_contain_text("tokens")
    assert max(phone.evaluate(wide)) <= 360
    phone.get_by_role("button", name="Settings").tap()
    expect(phone.get_by_label("temperature")).to_be_visible()
    assert max(phone.evaluate(wide)) <= 360
    phone.get_by_role("button", name="Done").tap()
    expect(phone.get_by_role("button", name="New chat")).to_be_hidden()
    phone.locator("#menu").tap()
    expect(phone.get_by_role("button", name="New chat")).to_be_focused()
    phone.keyboard.press("Escape")
    expect(phone.locator("#menu")).to_be_focused()
    phone.locator("#menu").tap()
    phone.get_by_role("button", name="New chat").tap()
    expect(phone.locator("#empty")).to_be_visible()
    expect(phone.get_by_role("button", name="New chat")).to_be_hidden()


def test_light_and_dark(page: Page, server: Server) -> None:
    """The page follows the system's theme, then the reader's choice; the text is legible in both."""
    lightness = """(name) => {
        const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map((value) => (value / 255) ** 2.2);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""

    def is_dark() -> bool:
        ink, paper = (page.evaluate(lightness, name) for name in ("color", "backgroundColor"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
        return bool(paper < ink)

    page.emulate_media(color_scheme="dark")
    opened(page, server)
    assert is_dark()
    page.emulate_media(color_scheme="light")
    assert not is_dark()
    page.get_by_role("button", name="Light or dark").click()
    assert is_dark()
    page.reload()
    assert is_dark()
