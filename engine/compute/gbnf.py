"""Translates llama.cpp's grammars (GBNF, `root ::= ...`) into Lark's syntax, as llguidance reads it.

A terminal is much faster than a rule. A rule becomes one if it is a regular expression and a lexer can read it
(gbnf_nodes.py). The whole grammar is one terminal if its root is a regular expression.
"""

import json
import re
from collections.abc import Iterator, Mapping

from octavo.engine.compute.gbnf_nodes import (
    EVERY,
    OTHERS,
    Chain,
    Choice,
    Name,
    Node,
    Repeat,
    Rules,
    Text,
    names_in,
    regular,
    safe_terminals,
)

_DEFINES = re.compile(r"(?:\s++|#[^\n]*+|//[^\n]*+)*+[\w-]+\s*::=")
_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*)|(?P<rule>[\w-]+\s*::=)|(?P<name>[\w-]+)
    |(?P<string>"(?:\\.|[^"\\])*")|(?P<class>\[(?:\\.|[^\]\\])*\])
    |(?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\}|[*+?])|(?P<id>!?<\[\d+\]>|<[^>\s]+>)|(?P<sign>[()|.])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}  # Any sign stands for itself, as other servers take "\-" in a class.
_COUNTS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


EMPTY = Text('""')
ANY = Text("/(?s:.)/", EVERY)


def is_gbnf(grammar: str) -> bool:
    """Returns whether the first definition is one of GBNF; Lark's are `name: ...` or begin with `%`."""
    return _DEFINES.match(grammar) is not None


def to_lark(grammar: str) -> str:
    """Returns the grammar in Lark's syntax. Raises ValueError, which says what is wrong where."""
    rules = _Parser(grammar).rules()
    if "root" not in rules:
        raise ValueError("the grammar has no rule 'root'")
    for name, node in rules.items():
        for other in names_in(node):
            if other not in rules:
                raise ValueError(f"the rule '{name[:50]}' refers to '{other[:50]}', which is missing")
    return "\n".join(_lines(rules)) + "\n"


def _lines(rules: Rules) -> Iterator[str]:
    """Yields the rules of Lark. What is a regular expression may be needed as a terminal, as a rule, or as both."""
    expressions = regular(rules)
    safe = safe_terminals(rules, expressions)
    plain = {name: f"{index}_{re.sub('[^a-zA-Z0-9]', '_', name)[:40]}" for index, name in enumerate(rules)}
    terminals = {name: f"T{plain[name].upper()}" for name in expressions}
    names = {name: terminals[name] if name in safe else f"r{plain[name].lower()}" for name in rules}
    yield f"start: {terminals.get('root', names['root'])}"
    for name, node in rules.items():
        if name in terminals:
            yield f"{terminals[name]}: {_lark(node, terminals)}"
        if name not in safe:
            yield f"{names[name]}: {_lark(node, names)}"


def _lark(node: Node, names: Mapping[str, str]) -> str:
    match node:
        case Text(lark):
            return lark
        case Name(name):
            return names[name]
        case Chain(parts):
            return " ".join(_lark(part, names) for part in parts) or EMPTY.lark
        case Choice(options):
            return "(" + " | ".join(_lark(option, names) for option in options) + ")"
        case Repeat(part, least, most):
            inner = _lark(part, names)
            return f"({inner}){{{least},{'' if most is None else most}}}"


class _Parser:
    """Parses a grammar by recursive descent."""

    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._tokens = list(self._split())
        self._next = 0

    def _split(self) -> Iterator[tuple[str, str, int]]:
        """Yields the tokens: kind, text and position."""
        position = 0
        while position < len(self._grammar):
            found = _TOKEN.match(self._grammar, position)
            if found is None:
                raise self._error("this is no part of a grammar", position)
            if found.lastgroup != "blank":
                yield str(found.lastgroup), found[0], position
            position = found.end()
        yield "end", "", position

    def _error(self, complaint: str, position: int) -> ValueError:
        line = self._grammar.count("\n", 0, position) + 1
        return ValueError(f"{complaint}: line {line}, {self._grammar[position : position + 20]!r}")

    def _take(self, *kinds: str) -> tuple[str, str, int] | None:
        """Takes the next token if it is of one of the kinds or, for a sign, the sign itself."""
        token = self._tokens[self._next]
        if token[0] not in kinds and token[1] not in kinds:
            return None
        self._next += 1
        return token

    def rules(self) -> dict[str, Node]:
        """Returns the rules by name. Of two with the same name the last one counts, as in llama.cpp."""
        rules: dict[str, Node] = {}
        while (head := self._take("rule")) is not None:
            rules[head[1].removesuffix("::=").strip()] = self._choice()
        if self._take("end") is None:
            raise self._error("a rule should begin here", self._tokens[self._next][2])
        return rules

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._take("|") is not None:
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while (token := self._take("name", "string", "class", "id", ".", "(")) is not None:
            part = self._part(*token)
            while (count := self._take("count")) is not None:
                part = _repeated(part, count[1])
            parts.append(part)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _part(self, kind: str, text: str, position: int) -> Node:
        match kind:
            case "name":
                return Name(text)
            case "string":
                codes = self._characters(text[1:-1], position)
                return Text(json.dumps("".join(map(chr, codes))), _set(codes[0], codes[0]) if codes else 0)
            case "class":
                return self._class(text[1:-1], position)
            case "id":
                return Text(f"<[^{text[3:-2]}]>" if text.startswith("!") else text, is_token=True)
            case _:
                return ANY if text == "." else self._group(position)

    def _group(self, position: int) -> Node:
        inner = self._choice()
        if self._take(")") is None:
            raise self._error("this bracket is not closed", position)
        return inner

    def _characters(self, text: str, position: int) -> list[int]:
        """Returns the code points that the text stands for, with its escapes resolved."""
        found = []
        for match in _CHARACTER.finditer(text):
            *codes, escaped, plain = match.groups()
            code = next((int(each, 16) for each in codes if each is not None), None)
            if code is None and escaped is not None and escaped not in _ESCAPES and escaped.isalnum():
                raise self._error(f"the escape \\{escaped} is not known", position)
            found.append(ord(plain or _ESCAPES.get(escaped, escaped)) if code is None else code)
        if any(0xD800 <= code < 0xE000 or code > 0x10FFFF for code in found):
            raise self._error("an escape is no character", position)
        return found

    def _class(self, text: str, position: int) -> Text:
        """Returns a class of characters as a regular expression."""
        negated, text = text.startswith("^"), text.removeprefix("^")
        is_dash = [match[0] == "-" for match in _CHARACTER.finditer(text)]
        codes = self._characters(text, position)
        ranges, members, index = "", 0, 0
        while index < len(codes):
            is_range = index + 2 < len(codes) and is_dash[index + 1]
            first, last = codes[index], codes[index + 2 if is_range else index]
            if last < first:
                raise self._error("a range of characters ends before it begins", position)
            ranges += f"{_regex(first)}-{_regex(last)}" if is_range else _regex(first)
            members |= _set(first, last)
            index += 3 if is_range else 1
        if not ranges:
            return ANY if negated else Text("/[^\\s\\S]/", EVERY)
        # The others stay: few classes have them all.
        return Text(f"/[^{ranges}]/", EVERY & ~members | 1 << OTHERS) if negated else Text(f"/[{ranges}]/", members)


def _set(first: int, last: int) -> int:
    """Returns the set of the characters from one to another."""
    return (1 << min(last, OTHERS) + 1) - (1 << min(first, OTHERS))


def _regex(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


def _repeated(part: Node, count: str) -> Node:
    if count in _COUNTS:
        least, most = _COUNTS[count]
    else:
        first, comma, last = count[1:-1].partition(",")
        least = int(first)
        most = least if not comma else int(last) if last.strip() else None
    if most is not None and most < least:
        raise ValueError(f"the repetition {count} ends before it begins")
    return EMPTY if most == 0 else Repeat(part, least, most)
