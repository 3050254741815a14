"""llama.cpp's grammars take what they take there, whatever llguidance's lexer would make of them."""

import pytest

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler, GrammarError
from octavo.engine.compute.gbnf import is_gbnf
from tests.engine.compute.following import sampled, takes
from tests.server.vocab import EOS, byte_level

# These three are from llama.cpp's folder of examples.
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
LIST = r"""root ::= item+

# Excludes various line break characters
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> Compiler:
    path = tmp_path_factory.mktemp("gbnf") / "tokenizer.json"
    byte_level().backend.save(str(path))
    return Compiler(path, (EOS,))


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        (JSON, '{"a": [1, -2.5e3, {"b": null}], "c": "x\\né"}', '{"a" 1}'),
        (ARITHMETIC, "(a+b)*3 =12\nx=1\n\n", "a+b\n"),
        (LIST, "- a\n- b c\n", "- a\u2028\n"),
        (r'root ::= "\u00e9\xe9\U0001F600\x41\u0022"', 'éé😀A"', "éA"),
        (r"root ::= [\u00e9\U0001F600-\U0001F64F]+", "é😀", "e"),
        (r'root ::= "\[\"\]\\\n\t\r"', '["]\\\n\t\r', "["),
        (r"root ::= [^\]\"\n]+", "ab[", "a]"),
        (r"root ::= [\[\]\\]+", "[]\\", "a"),
        ("root ::= [-az]+", "a-z", "b"),
        (r"root ::= [a\-z\^\.]+", "a-z^.", "b"),
        (r'root ::= "\-\/"', "-/", "-"),
        ("root ::= [+*/-]+ [&&~~]", "+*/-&", "a&"),
        ("root ::= [^]", "x", "xx"),
        ('root ::= word "z"\nword ::= [a-z]*', "abzz", "ab"),
        ('root ::= e\ne ::= "(" e ")" | word "z"\nword ::= [a-z]*', "((abzz))", "((ab))"),
        ('root ::= ("a" | "b"){2,3} "c"? # a comment\n', "abc", "a"),
        ('root ::=\n  "a"\n  | "b"\n', "b", "c"),
        (
            'fooBar ::= "x"\nfoo-bar ::= "y"\nfoo_bar ::= "z"\nroot ::= fooBar foo-bar foo_bar start\nstart ::= "s"',
            "xyzs",
            "x",
        ),
        ("# a comment\n\n# another\nroot ::= . .", "a\n", "a"),
        ('root ::= "a" "" ("" | "b"){0,1} "x"{0}', "ab", "ax"),
        ('root ::= "a/b" [/]', "a/b/", "a/b"),
        ('root ::= "<" | "<=" | "ab" "c"?', "<=", "ac"),
        ('root ::= "a"*', "", "b"),
    ],
)
def test_what_a_grammar_takes(compiler: Compiler, grammar: str, taken: str, refused: str) -> None:
    assert is_gbnf(grammar)
    assert takes(compiler, Grammar("grammar", grammar), taken)
    assert not takes(compiler, Grammar("grammar", grammar), refused)


def test_tokens_are_written_by_id(compiler: Compiler) -> None:
    for grammar in ("root ::= <[103]> e\ne ::= <[104]> e | !<[105]>", 'root ::= <[103]> "e" </s>'):
        compiler.compile(Grammar("grammar", grammar))


@pytest.mark.parametrize("grammar", [JSON, LIST])
def test_arbitrary_outputs_end(compiler: Compiler, grammar: str) -> None:
    for seed in range(3):
        sampled(compiler, Grammar("grammar", grammar), seed, most=5000)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "a" | missing', "refers to 'missing'"),
        (r'root ::= "\q"', r"the escape \q is not known: line 1"),
        (r'root ::= "\ud800"', "no character"),
        ('root ::= "b"\nx ::= ("a"', "not closed: line 2"),
        ('root ::= "a', "no part of a grammar"),
        ('foo ::= "a"', "no rule 'root'"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= "a"{3,2}', "ends before it begins"),
        ("root ::= root", "No output can follow"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(compiler: Compiler, grammar: str, words: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        compiler.compile(Grammar("grammar", grammar))
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "grammar",
    [
        '?start: "a" | "b"',
        'start: x\n?x: "a" | "b"',
        '!start: "a"',
        'start[capture]: "a"',
        '%llguidance {}\nstart: "a"',
        "%import common.INT\nstart: INT",
        '%ignore / /\nstart: "a"',
        '// root ::= "b"\n\n# root ::= "b"\nstart: "a"',
        'start: "root ::= " /::=/',
        '\n\n   start: "a"',
        'A: "x"\nstart: A',
    ],
)
def test_lark_is_told_from_gbnf(compiler: Compiler, grammar: str) -> None:
    assert not is_gbnf(grammar)
    compiler.try_out(Grammar("grammar", grammar))
