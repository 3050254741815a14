"""server/web/markdown.js and inline.js turn each text into the right tags and text, in the browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.harness import Server

OUTLINE = """async (text) => {
    const { blocks, render } = await import(new URL("web/markdown.js", location));
    const outline = (node) => {
        if (node.nodeType === Node.TEXT_NODE) return node.data;
        if (node.tagName === "FIGCAPTION") return "";
        const shown = [...node.attributes].filter(({ name }) => ["href", "start", "class", "src"].includes(name));
        const attributes = shown.map(({ name, value }) => ` ${name}=${value}`).join("");
        return `<${node.tagName.toLowerCase()}${attributes}>${[...node.childNodes].map(outline).join("")}</>`;
    };
    return blocks(text).flatMap(render).map(outline).join("");
}"""


@pytest.fixture(scope="module")
def blank(browser: Browser, server: Server) -> Iterator[Page]:
    """Opens the page, so that its modules can be imported from its own origin."""
    page = browser.new_page()
    page.goto(server.url)
    yield page
    page.close()


CASES = [
    ("plain text", "<p>plain text</>"),
    ("two\nlines", "<p>two<br></>lines</>"),
    ("one\n\ntwo", "<p>one</><p>two</>"),
    ("# One\n### Three ###", "<h1>One</><h3>Three</>"),
    ("#hashtag", "<p>#hashtag</>"),
    ("a\n\n---\n\nb", "<p>a</><hr></><p>b</>"),
    ("**bold** and *italic* and ~~gone~~", "<p><strong>bold</> and <em>italic</> and <del>gone</></>"),
    ("__bold__ and _italic_", "<p><strong>bold</> and <em>italic</></>"),
    ("***both***", "<p><strong><em>both</></></>"),
    ("**a *b* c**", "<p><strong>a <em>b</> c</></>"),
    ("snake_case_name, 2 * 3 * 4, a * b", "<p>snake_case_name, 2 * 3 * 4, a * b</>"),
    ("*a `b*c` d*", "<p><em>a <code>b*c</> d</></>"),
    ("**open and *open", "<p>**open and *open</>"),
    (r"\*not\* \`this\`", "<p>*not* `this`</>"),
    ("`code` and ``a ` b``", "<p><code>code</> and <code>a ` b</></>"),
    ("an `open tick", "<p>an `open tick</>"),
    ("```python\na = 1\n\nb < 2\n```\nafter", "<figure class=code><pre><code>a = 1\n\nb < 2</></></><p>after</>"),
    ("```\nstill **open", "<figure class=code><pre><code>still **open</></></>"),
    ("````\n```\n````", "<figure class=code><pre><code>```</></></>"),
    ("~~~\nx\n~~~", "<figure class=code><pre><code>x</></></>"),
    ("- a\n- b", "<ul><li>a</><li>b</></>"),
    ("text:\n* a\n* b\n\nend", "<p>text:</><ul><li>a</><li>b</></><p>end</>"),
    ("3. a\n4. b", "<ol start=3><li>a</><li>b</></>"),
    ("1. a\n\n2. b", "<ol start=1><li>a</><li>b</></>"),
    ("- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</></></></></><li>d</></>"),
    ("1. a\n   - b\n2. c", "<ol start=1><li>a<ul><li>b</></></><li>c</></>"),
    ("1. a\n   ```\n   x\n     y\n   ```\n2. b",)
    + ("<ol start=1><li>a<figure class=code><pre><code>x\n  y</></></></><li>b</></>",),
    ("- a\n\n  more", "<ul><li><p>a</><p>more</></></>"),
    ("- a\nlazy", "<ul><li>a<br></>lazy</></>"),
    ("> a\n> - b", "<blockquote><p>a</><ul><li>b</></></>"),
    ("| a | b |\n|---|--:|\n| 1 | `x\\|y` |",)
    + (
        "<div class=table><table><thead><tr><th class=>a</><th class=right>b</></></>"
        "<tbody><tr><td class=>1</><td class=right><code>x|y</></></></></></>",
    ),
    ("a | b", "<p>a | b</>"),
    ("[text](https://example.org/a_b)", "<p><a href=https://example.org/a_b>text</></>"),
    ("[w](https://en.wikipedia.org/wiki/A_(b))", "<p><a href=https://en.wikipedia.org/wiki/A_(b)>w</></>"),
    ('[t](https://example.org "title")', "<p><a href=https://example.org/>t</></>"),
    ("[**b**](mailto:a@example.org)", "<p><a href=mailto:a@example.org><strong>b</></></>"),
    ("[https://example.org](https://example.org)", "<p><a href=https://example.org/>https://example.org</></>"),
    ("[![i](https://a.org/i.png)](https://b.org)", "<p><a href=https://b.org/>i</></>"),
    ("see https://example.org/x.", "<p>see <a href=https://example.org/x>https://example.org/x</>.</>"),
    ("<https://example.org>", "<p><a href=https://example.org/>https://example.org</></>"),
    ("![alt](https://example.org/i.png)", "<p><a href=https://example.org/i.png>alt</></>"),
    ("[a](/relative) [b]", "<p>[a](/relative) [b]</>"),
]

HOSTILE = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "<b>no</b> <svg onload=alert(1)> &lt;b&gt;",
    "[a](javascript:window.ran=1)",
    "[a](JaVaScRiPt:window.ran=1)",
    "[a](java\tscript:window.ran=1)",
    "[a](data:text/html,<script>1</script>)",
    "[a](vbscript:x) <javascript:x> javascript:x",
    "```<script>\n</code></pre><img src=x onerror=1>\n```",
    "`<img src=x onerror=1>`",
    "| <img src=x> |\n|---|\n| <script>1</script> |",
    '[a](https://example.org/"onclick="window.ran=1)',
    "![x](data:image/svg+xml,<svg onload=1>)",
    "[a](file:///etc/passwd) [b](blob:x) [c](//example.org)",
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
def test_rendering(blank: Page, text: str, expected: str) -> None:
    assert blank.evaluate(OUTLINE, text) == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_model_writes_is_markup(blank: Page, text: str) -> None:
    code = """async (text) => {
        const { render } = await import(new URL("web/markdown.js", location));
        const root = document.createElement("div");
        root.append(...render(text));
        document.body.append(root);
        const found = [...root.querySelectorAll("*")].map((node) => [node.tagName, ...node.getAttributeNames()]);
        const links = [...root.querySelectorAll("a")].map((link) => link.protocol);
        root.remove();
        return [found.flat(), links, window.ran ?? null];
    }"""
    names, protocols, ran = blank.evaluate(code, text)
    assert not {"SCRIPT", "IMG", "SVG", "svg", "B"} & set(names)
    assert not [name for name in names if name.startswith("on") or name == "src"]
    assert set(protocols) <= {"https:"}
    assert ran is None


@pytest.mark.parametrize(
    "text",
    ["> " * 5000, "- " * 5000, "*a " * 20000, "[" * 20000, "`" * 20001, "**a" * 20000, "[a](" * 10000, "| " * 20000]
    + ["\n".join("  " * depth + "- a" for depth in range(500)), "# " + " " * 50000 + "x", "_*" * 20000],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_nesting_neither_fails_nor_takes_forever(blank: Page, text: str) -> None:
    assert blank.evaluate(OUTLINE, text)


def test_a_growing_text_changes_its_last_block_alone(blank: Page) -> None:
    text = "# Title\n\nSome *text*\n\n```\ncode\n```\n\n- a\n- b\n\n| a |\n|---|\n| b |\n"
    code = "async (t) => (await import(new URL('web/markdown.js', location))).blocks(t)"
    before: list[str] = []
    for end in range(len(text) + 1):
        after = blank.evaluate(code, text[:end])
        assert after[: len(before) - 1] == before[:-1]
        before = after
