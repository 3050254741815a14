"""The page stays useful when things go wrong: refusals, loading, a dying engine, keys, hostile answers."""

import os
import re
import signal
from collections.abc import Callable

from playwright.sync_api import Page, Route, expect

from tests.e2e.harness import Server
from tests.fake_engine import RESTART
from tests.page.test_chat import UNFINISHED, ask, bodies, expect_answer, opened

HOSTILE = """<script>window.ran = 1</script>

<img src=x onerror="window.ran = 2"> and [a link](javascript:window.ran=3)

```html
</code></pre><img src=x onerror="window.ran = 4">
```

| <svg onload="window.ran = 5"> |
|---|
| ![an image](https://images.example/i.png) |

1. <iframe srcdoc="<script>parent.ran = 6</script>"></iframe>
"""


def test_a_refusal_is_shown_in_the_servers_words(page: Page, server: Server) -> None:
    opened(page, server)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("temperature").fill("5")
    page.keyboard.press("Escape")
    ask(page, "hello")
    expect(page.locator(".note.error")).to_have_text("'temperature' should be less than or equal to 2.")
    page.reload()
    expect(page.locator(".note.error")).to_contain_text("temperature")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Regenerate").click()
    expect_answer(page, "hello")


def test_the_engine_is_killed_and_comes_back(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo(held=[RESTART])
    server.wait_for_health(200)
    opened(page, server)
    ask(page, UNFINISHED)
    expect(page.locator(".assistant .text")).to_contain_text("word")
    os.kill(server.engine_pids()[-1], signal.SIGKILL)
    expect(page.locator(".note.error")).to_contain_text("engine process died")
    expect(page.locator(".assistant .text")).to_contain_text("word")  # what had come stays
    sent = bodies(page)
    ask(page, "and now?")  # is sent again until the engine is back
    expect(page.locator(".note.waiting")).to_be_visible()
    server.release(RESTART)
    expect_answer(page, "and now?")
    assert len(server.engine_pids()) == 2
    assert [message["content"] for message in sent[-1]["messages"]][::2] == [UNFINISHED, "and now?"]


def test_while_the_model_loads_its_progress_is_told(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo(load_seconds=1000)
    server.wait_for_health(503)
    opened(page, server)
    expect(page.locator("#notice")).to_contain_text("The model is loading")
    ask(page, "are you there?")
    expect(page.locator(".note.waiting")).to_contain_text(re.compile(r"loading weights, \d+ of 10"))
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .stats")).to_have_text("stopped")


def test_what_waits_for_the_model_goes_on_when_it_has_loaded(page: Page, server: Server) -> None:
    def loading(route: Route) -> None:
        route.fulfill(status=503, json={"error": {"message": "The model is loading: 9 of 10."}})

    busy = re.compile("/(health|v1/chat/completions)$")
    page.route(busy, loading)
    opened(page, server)
    ask(page, "are you there?")
    for place in ("#notice", ".note.waiting"):
        expect(page.locator(place)).to_have_text("The model is loading: 9 of 10.")
    page.unroute(busy)
    expect_answer(page, "are you there?")
    expect(page.locator("#notice")).to_be_empty()


def test_a_server_that_is_gone(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo()
    server.wait_for_health(200)
    opened(page, server)
    server.process.kill()
    server.exit_status()
    ask(page, "hello?")
    expect(page.locator(".note.error")).to_have_text("The server cannot be reached.")


def test_a_key_is_asked_for(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo("--api-key", "schlüssel")
    server.wait_for_health(200)
    page.goto(server.url)
    expect(page.get_by_label("This server asks for an API key")).to_be_focused()
    expect(page.locator("#notice")).to_be_empty()
    for key, outcome in (("wrong", "The API key is not valid."), ("schlüssel", "")):
        page.get_by_label("This server asks for an API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_have_text(outcome)
    expect(page.locator("#key-form")).to_be_hidden()
    ask(page, "open")
    expect_answer(page, "open")
    page.evaluate("sessionStorage.clear()")
    ask(page, "shut")
    expect(page.locator(".note.error")).to_contain_text("An API key is required")
    page.get_by_label("This server asks for an API key").fill("schlüssel")
    page.keyboard.press("Enter")
    expect_answer(page, "shut")


def test_under_a_prefix_and_with_several_names(page: Page, serve_echo: Callable[..., Server]) -> None:
    server = serve_echo("--root-path", "/octavo", "--served-model-name", "one,two")
    server.wait_for_health(200)
    page.goto(f"{server.url}/octavo/")
    expect(page.locator("#model")).to_have_value("one")
    page.locator("#model").select_option("two")
    page.reload()
    expect(page.locator("#model")).to_have_value("two")
    sent = bodies(page)
    paths: list[str] = []
    page.on("request", lambda request: paths.append(request.url) if request.method == "POST" else None)
    ask(page, "behind a proxy")
    expect_answer(page, "behind a proxy")
    assert paths == [f"{server.url}/octavo/v1/chat/completions"]
    assert sent[0]["model"] == "two"


def test_a_hostile_answer_is_text(page: Page, server: Server) -> None:
    opened(page, server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    before = page.evaluate("document.querySelectorAll('script, img, svg, iframe').length")
    ask(page, HOSTILE)
    expect(page.locator(".assistant li")).to_contain_text("iframe srcdoc")
    expect(page.locator("#send")).to_be_visible()
    page.reload()
    expect(page.locator(".assistant li")).to_contain_text("iframe srcdoc")
    assert page.evaluate("document.querySelectorAll('script, img, svg, iframe').length") == before
    assert page.evaluate("window.ran ?? null") is None
    assert page.evaluate("[...document.querySelectorAll('#thread a')].map((a) => a.protocol)") == ["https:"]
    assert {url.removeprefix(server.url).split("/")[1] for url in asked} <= {"", "web", "v1", "health"}


def test_the_policy_stops_what_the_code_would_let_through(page: Page, server: Server) -> None:
    opened(page, server)
    attempt = "() => { try { document.body.innerHTML = '<b>'; } catch (error) { return error.name; } }"
    assert page.evaluate(attempt) == "TypeError"
    refused = """() => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI));
        document.body.append(Object.assign(document.createElement("img"), { src: "https://images.example/i.png" }));
    })"""
    assert page.evaluate(refused) == "https://images.example/i.png"
