"""Regular expressions keep their meaning, whether JavaScript or Python writes them."""

import json
from typing import Any

import pytest

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler, GrammarError
from octavo.engine.compute.patterns import as_rust
from tests.engine.compute.following import takes
from tests.server.vocab import EOS, byte_level

# zod writes these.
TIME = r"^(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?$"
DURATION = r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
HOSTNAME = rf"^(?=.{{1,253}}\.?$){LABEL}(?:\.{LABEL})*\.?$"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> Compiler:
    path = tmp_path_factory.mktemp("patterns") / "tokenizer.json"
    byte_level().backend.save(str(path))
    return Compiler(path, (EOS,))


@pytest.mark.parametrize(
    ("pattern", "taken", "refused"),
    [
        (r"[^[\]]+", ["a", "({"], ["[", "a]"]),
        (r"[[a]", ["[", "a"], ["b"]),
        (r"[]a]", ["]", "a"], ["b"]),
        (r"[^]a]", ["b"], ["]", "a"]),
        (r"[a&&b]", ["a", "&", "b"], ["ab", "c"]),
        (r"[a~~b]", ["a", "~", "b"], ["c"]),
        (r"[!--/]", ["!", "-", "/", "+"], ["."]),
        (r"[[:digit:]x]{2}", ["1x"], [":1", "[x"]),
        (r"\Aa\Z", ["a"], ["aZ"]),
        (r"\[[\[\\]\]", ["[[]", "[\\]"], ["[a]"]),
        (r"\cA", ["\x01"], ["A"]),
        (r"a&&b--c~~d[e]", ["a&&b--c~~de"], ["a"]),
    ],
)
def test_classes_and_escapes(compiler: Compiler, pattern: str, taken: list[str], refused: list[str]) -> None:
    for text in taken:
        assert takes(compiler, Grammar("regex", pattern), text), text
    for text in refused:
        assert not takes(compiler, Grammar("regex", pattern), text), text
    assert as_rust(as_rust(pattern)) == as_rust(pattern)


@pytest.mark.parametrize("pattern", ["a\\", "[a\\", "\\"])
def test_a_pattern_that_breaks_off_is_refused(compiler: Compiler, pattern: str) -> None:
    for grammar in (Grammar("regex", pattern), Grammar("json", json.dumps({"type": "string", "pattern": pattern}))):
        with pytest.raises(GrammarError, match="ends within an escape"):
            compiler.compile(grammar)


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"format": "time", "pattern": TIME}, ["10:20", "10:20:30.5"], ["10:20:30Z", "25:00"]),
        ({"format": "duration", "pattern": DURATION}, ["P3W", "P1DT2H"], ["P", "1D"]),
        ({"format": "hostname", "pattern": HOSTNAME}, ["a.example"], ["-a", ("a" * 60 + ".") * 4 + "a" * 10]),
        ({"format": "hostname", "pattern": HOSTNAME, "maxLength": 2}, ["ab"], ["abc"]),
        ({"pattern": "^[[]$"}, ["["], ["a"]),
    ],
)
def test_what_zod_writes_beside_a_format(
    compiler: Compiler, schema: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    grammar = Grammar("json", json.dumps({"type": "string"} | schema))
    for text in taken:
        assert takes(compiler, grammar, json.dumps(text)), text
    for text in refused:
        assert not takes(compiler, grammar, json.dumps(text)), text


def test_names_of_properties_are_patterns_too(compiler: Compiler) -> None:
    schema = {"type": "object", "patternProperties": {"^[[]$": {"type": "integer"}}, "additionalProperties": False}
    assert takes(compiler, Grammar("json", json.dumps(schema)), '{"[":1}')
    assert not takes(compiler, Grammar("json", json.dumps(schema)), '{"a":1}')
