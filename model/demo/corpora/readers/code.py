"""Makes tasks for programmers from documented Python functions."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.model.demo.corpora.archives import texts
from octavo.model.demo.corpora.documents import Document

LEAST_LINES = 3  # of a body without its docstring
MOST = 250  # functions of a package
LONGEST = 1600  # characters of an answer
SUMMARY = range(25, 400)  # characters of the first paragraph of a docstring
ROLE = re.compile(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")  # a cross-reference, as :func:`name`


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields a document for public functions that have a docstring and are not too long.

    Of a package with very many only some are taken, as their digests give, so that it does not outweigh the others.
    """
    for archive in archives:
        found: list[Document] = []
        for name, source in texts(archive, "*.py"):
            if not re.search(r"(^|/)(tests?|conftest|_\w+)(/|\.py|_)", name):
                found.extend(_functions(source))
        yield from sorted(found, key=Document.digest)[:MOST]


def _functions(source: str) -> Iterator[Document]:
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            summary = _summary(node)
            if len(summary) in SUMMARY and len(node.body) > 1:
                code = _code(node, lines, summary)
                if code is not None and len(code) <= LONGEST:
                    yield Document(
                        f"Write a Python function `{node.name}({_parameters(node)})`. {summary}",
                        f"```python\n{code}\n```",
                    )


def _summary(node: ast.FunctionDef) -> str:
    """Returns the first paragraph of the docstring as plain text; an empty one if it is no whole sentence."""
    paragraph = (ast.get_docstring(node) or "").partition("\n\n")[0]
    text = " ".join(ROLE.sub(r"\1", paragraph).replace("``", "`").replace("*", "").split())
    return text if re.match(r"[A-Z]", text) and text.endswith(".") and "\\" not in text and ">>>" not in text else ""


def _parameters(node: ast.FunctionDef) -> str:
    return ", ".join(argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def _code(node: ast.FunctionDef, lines: Sequence[str], summary: str) -> str | None:
    """Returns the function with the summary for its docstring; None if its body is too short to teach anything."""
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno or docstring.lineno : node.end_lineno]
    if sum(bool(line.strip()) for line in body) < LEAST_LINES:
        return None
    indent = " " * docstring.col_offset
    text = "\n".join([*head, f'{indent}"""{summary}"""', *(line.rstrip() for line in body)])
    return re.sub(r"\n{3,}", "\n\n", re.sub(r'("""\n)\n+', r"\1", text))
