"""The lens shows the experts that the API tells of the same request, and words where there is nothing to see."""

import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from octavo.server.experts.figures import DENSE, IDENTICAL
from tests.e2e.harness import MODEL, PATIENCE, Server, started, write_tokenizer
from tests.page.test_chat import ask, bodies, expect_answer, opened
from tests.tiny import write_tiny_checkpoint

LAYERS, EXPERTS, TOP_K, ANSWER = 3, 10, 2, 6  # more experts than colours; the answer in tokens
SETTINGS = json.dumps({"max_tokens": str(ANSWER), "seed": "7"})
QUESTION = "é + b\nc"
SVG = "{http://www.w3.org/2000/svg}"
FLAGS = ("--kv-cache-memory", "1MiB", "--allow-expert-control")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts a server whose model has experts that differ."""
    directory = tmp_path_factory.mktemp("sparse")
    shape = {"num_local_experts": EXPERTS, "num_hidden_layers": LAYERS, "num_experts_per_tok": TOP_K}
    model = write_tiny_checkpoint(directory / MODEL, vocab_size=264, sharp=3.0, **shape)
    write_tokenizer(model)
    with started(["-m", "octavo", "serve", model, *FLAGS], directory) as server:
        server.wait_for_health(200)
        yield server


def lens(page: Page, server: Server) -> Page:
    """Opens the page with settings that make the answer repeatable, and the lens."""
    opened(page, server)
    page.evaluate("(text) => localStorage.setItem('octavo:/:settings', text)", SETTINGS)
    page.locator("#open-lens").click()
    expect(page.locator("#lens-note")).not_to_have_text("")
    return page


def looked(page: Page, server: Server) -> Any:
    """Asks with the lens open; returns what the page has sent."""
    sent = bodies(lens(page, server))
    ask(page, QUESTION)
    expect(page.locator(".stats").last).to_contain_text(f"{ANSWER} tokens")
    return next(body for body in sent if body.get("stream"))


def told(server: Server, body: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the ids and the weights that the API tells of a request, both [T, L, k]."""
    whole = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=whole, timeout=PATIENCE).json()["choices"][0]
    fields = (answer["routed_experts"], "<i4"), (answer["routed_experts_weights"], "<f4")
    ids, weights = (np.frombuffer(b64decode(text), kind).reshape(-1, LAYERS, TOP_K) for text, kind in fields)
    return ids, weights


def coloured(page: Page) -> list[str]:
    """Returns the expert in whose colour each token is shown, which its class must confirm."""
    tokens = "(nodes) => nodes.map(({ dataset, className }) => [dataset.expert, className])"
    shown = page.locator(".token").evaluate_all(tokens)
    for expert, name in shown:
        assert name == (f"token e{int(expert) % 8}" if expert else "token")
    return [expert for expert, _ in shown]


def test_colours_are_those_of_the_experts_that_the_api_tells(page: Page, sparse: Server) -> None:
    body = looked(page, sparse)
    ids, weights = told(sparse, body)
    heavy = np.zeros((len(ids), EXPERTS))
    for layer in range(LAYERS):
        np.add.at(heavy, (np.arange(len(ids))[:, None], ids[:, layer]), weights[:, layer].astype(float))
    expect(page.locator(".token")).to_have_count(len(ids) + 1)
    assert coloured(page) == [*map(str, heavy.argmax(1)), ""]  # nothing was computed from the last token
    page.locator("#lens-layer").press("ArrowRight")
    for layer in range(LAYERS):
        expect(page.locator("#lens-layer-name")).to_have_text(f"layer {layer}")
        page.evaluate("() => new Promise(requestAnimationFrame)")
        assert coloured(page) == [*map(str, ids[:, layer, 0]), ""]
        page.locator("#lens-layer").press("ArrowRight")


def test_counts_stand_beside_the_fair_share_and_chance(page: Page, sparse: Server) -> None:
    ids, _ = told(sparse, looked(page, sparse))
    expect(page.locator(".token")).to_have_count(len(ids) + 1)
    fair = len(ids) * TOP_K / EXPERTS
    counts = np.array([[int((ids[:, layer] == expert).sum()) for expert in range(EXPERTS)] for layer in range(LAYERS)])
    cells = page.locator("#lens-map td")
    titles = cells.evaluate_all("(nodes) => nodes.map(({ title }) => Number(title.match(/: (\\d+) of/)[1]))")
    assert titles == counts.ravel().tolist()
    assert [float(text) for text in cells.all_inner_texts()] == pytest.approx((counts / fair).ravel(), abs=0.0501)
    far = (2 * np.log(LAYERS * EXPERTS / 0.05)) ** 0.5 * (fair * (1 - TOP_K / EXPERTS)) ** 0.5
    beyond = cells.evaluate_all("(nodes) => nodes.map(({ className }) => className.split(' ')[0])")
    signs = np.where(counts > fair + far, "above", np.where(counts < fair - far, "below", ""))
    assert beyond == signs.ravel().tolist()
    said = page.locator("#lens-counts")
    repeated = (ids[1:, :, 0] == ids[:-1, :, 0]).mean()
    expect(said).to_contain_text(f"{len(ids)} tokens, each served by {TOP_K} of {EXPERTS} experts")
    expect(said).to_contain_text(f"20.0% or {fair:.1f} tokens")
    expect(said).to_contain_text(f"{100 * repeated:.1f}% of all cases; chance gives 10.0%")
    expect(said).to_contain_text(f"{(signs != '').sum()} of {LAYERS * EXPERTS} cells")


def test_tokens_are_read_by_keyboard_and_have_their_texts(page: Page, sparse: Server) -> None:
    ids, weights = told(sparse, looked(page, sparse))
    question = page.get_by_role("listbox", name="Tokens of the question").locator(".token")
    expect(question.last).to_contain_text(">")
    texts = question.evaluate_all("(nodes) => nodes.map((node) => node.firstChild.textContent)")
    assert "".join(texts) == r"<user>\xc3\xa9 + b↵" + "\nc</s><assistant>"
    question.first.focus()
    page.keyboard.press("ArrowRight")
    expect(question.nth(1)).to_be_focused()
    expect(page.locator("#lens-token caption")).to_have_text("Token 1, “u”, of the question")
    rows = [f"{expert} {weight:.2f}" for expert, weight in zip(ids[1].ravel(), weights[1].ravel(), strict=True)]
    assert page.locator("#lens-token td").all_inner_texts() == rows
    page.keyboard.press("Home")
    expect(question.first).to_be_focused()
    page.keyboard.press("End")
    expect(question.last).to_be_focused()
    page.locator(".token").last.hover()
    expect(page.locator("#lens-token")).to_contain_text("it was written last, and no expert has read it")


def pair(page: Page) -> tuple[list[str], list[str]]:
    """Returns the experts of the tokens on both sides, once both answers are whole."""
    sides = page.locator(".pair > div")
    for n in range(2):
        expect(sides.nth(n).get_by_role("listbox").last.locator(".token")).to_have_count(ANSWER)
        expect(sides.nth(n).locator('.token[data-expert=""]')).to_have_count(1)
    experts = "(nodes) => nodes.map(({ dataset }) => dataset.expert)"
    first, second = (sides.nth(n).locator(".token").evaluate_all(experts) for n in range(2))
    return first, second


def small(expert: str) -> str:
    """Returns the number in small digits."""
    return "".join(chr(0x2080 + int(digit)) for digit in expert)


def expect_difference(page: Page, first: Any, second: Any) -> None:
    """Checks the map of differences against the ids of both sides, each [T, L, k]."""
    counts = [
        np.stack([np.bincount(ids[:, n].ravel(), minlength=EXPERTS) for n in range(LAYERS)]) for ids in (first, second)
    ]
    a, b = counts[0] / len(first), counts[1] / len(second)
    both = (counts[0] + counts[1]) / (len(first) + len(second))
    far = (2 * np.log(LAYERS * EXPERTS / 0.05) * both * (1 - both) * (1 / len(first) + 1 / len(second))) ** 0.5
    cells = page.locator("#lens-pair td")
    assert [float(text) for text in cells.all_inner_texts()] == pytest.approx((100 * (a - b)).ravel(), abs=0.501)
    signs = np.where(a - b > far, "above", np.where(b - a > far, "below", ""))
    names = cells.evaluate_all("(nodes) => nodes.map(({ className }) => className.split(' ')[0])")
    assert names == signs.ravel().tolist()
    said = page.locator("#lens-pair > div > .hint")
    expect(said).to_contain_text(
        f"{len(first)} tokens against {len(second)}. {(signs != '').sum()} of {signs.size} cells"
    )


def test_an_answer_without_an_expert_stands_beside_the_first(page: Page, sparse: Server) -> None:
    body = looked(page, sparse)
    ids, _ = told(sparse, body)
    expect(page.locator("#lens-again")).to_be_disabled()
    gone = int(np.bincount(ids[:, 1].ravel()).argmax())
    page.locator("#lens-map tr").nth(2).locator("button").nth(gone).click()
    page.locator("#lens-layer").fill("2")
    page.locator("#lens-again").click()
    first, second = pair(page)
    other, _ = told(sparse, body | {"expert_mask": [[1, gone]]})
    assert first == [*map(str, ids[:, 1, 0]), ""]
    assert second == [*map(str, other[:, 1, 0]), ""]
    assert str(gone) in first and str(gone) not in second
    expect(page.locator(".pair h3").nth(0)).to_have_text("With all experts")
    expect(page.locator(".pair")).to_contain_text(f"Without expert {gone} of layer 1")
    expect_difference(page, ids, other)


def test_two_questions_are_compared_and_the_picture_is_saved(page: Page, sparse: Server) -> None:
    sent = bodies(lens(page, sparse))
    page.get_by_text("Compare two questions").click()
    page.get_by_label("First").fill("aaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    page.get_by_label("Second").fill("1 < 2 & 3")
    page.locator("#lens-layer").fill("1")
    page.get_by_role("button", name="Compare").click()
    sides = pair(page)
    answers = [told(sparse, body)[0] for body in sent if body.get("stream")]
    assert list(sides) == [[*map(str, ids[:, 0, 0]), ""] for ids in answers]
    expect_difference(page, *answers)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the picture").click()
    assert saved.value.suggested_filename == "lens.svg"
    picture = ElementTree.parse(saved.value.path())
    texts = [node.text or "" for node in picture.iter(f"{SVG}text")]
    numbered = "".join(
        text + small(expert) for text, expert in zip("1 < 2 & 3", sides[1][len("<user>") :], strict=False)
    )
    assert numbered in "".join(texts)
    shown = page.locator(".pair .token").first.evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert shown in {node.get("fill") for node in picture.iter(f"{SVG}rect")}


def test_nobody_switches_experts_off_where_that_is_not_allowed(page: Page, sparse: Server) -> None:
    def without_control(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"control": False})

    page.route("**/v1/experts", without_control)
    looked(page, sparse)
    expect(page.locator("#lens-map td").first).not_to_have_text("–")
    expect(page.locator("#lens-again")).to_be_hidden()
    expect(page.locator("#lens-map button")).to_have_count(0)


def test_a_dense_model_and_equal_experts_are_told_in_words(page: Page, server: Server) -> None:
    lens(page, server)
    expect(page.locator("#lens-note")).to_have_text(DENSE)
    shape = {"layers": list(range(LAYERS)), "experts": EXPERTS, "top_k": TOP_K, "identical": True}
    page.route("**/v1/experts", lambda route: route.fulfill(json={"experts": shape, "note": IDENTICAL}))
    page.locator("#open-lens").click()
    expect(page.locator("#lens")).to_be_hidden()
    page.locator("#open-lens").click()
    expect(page.locator("#lens-note")).to_have_text(IDENTICAL)
    sent = bodies(page)
    ask(page, "hi")
    expect_answer(page, "hi")
    assert "return_routed_experts" not in sent[0]
    expect(page.locator("#lens-view")).to_be_hidden()
    expect(page.locator(".token")).to_have_count(0)


def test_nothing_is_asked_for_while_the_lens_is_closed(page: Page, sparse: Server) -> None:
    lens(page, sparse).locator("#open-lens").click()
    sent = bodies(page)
    ask(page, QUESTION)
    expect(page.locator(".stats").last).to_contain_text(f"{ANSWER} tokens")
    assert [set(body) & {"return_routed_experts", "logprobs"} for body in sent] == [set()]


def test_a_phone_has_room_for_the_lens(page: Page, sparse: Server) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    looked(page, sparse)
    expect(page.locator(".token").first).to_be_visible()
    expect(page.locator("#scroller")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.getElementById('lens').scrollWidth") <= 390
