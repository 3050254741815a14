"""Defines what rules of GBNF consist of, and says which of them can be read by a lexer.

llguidance reads terminals first and greedily: what a terminal can take, it takes, though what follows needs it. So a
rule can be a terminal only if nothing that follows it begins with a character that would continue it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

OTHERS = 256  # stands for all code points from here on
EVERY = (1 << OTHERS + 1) - 1  # a set of characters has a bit for each


@dataclass(frozen=True, slots=True)
class Text:
    """A Text is an expression of Lark that refers to no rule."""

    lark: str
    first: int = 0  # the set of characters that it may begin with; 0 for an empty text, or a token
    is_token: bool = False  # it stands for a token, not for characters


@dataclass(frozen=True, slots=True)
class Name:
    """A Name refers to a rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A Chain is one part after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A Choice is one of several parts."""

    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A Repeat is a part, so many times."""

    part: "Node"
    least: int
    most: int | None  # None: there is no limit


Node = Text | Name | Chain | Choice | Repeat
Rules = Mapping[str, Node]


def parts_of(node: Node) -> Sequence[Node]:
    match node:
        case Chain(parts) | Choice(parts):
            return parts
        case Repeat(part):
            return (part,)
        case _:
            return ()


def names_in(node: Node) -> Iterator[str]:
    """Yields the rules that a part refers to."""
    if isinstance(node, Name):
        yield node.name
    for part in parts_of(node):
        yield from names_in(part)


def regular(rules: Rules) -> set[str]:
    """Returns the rules that are regular expressions: without tokens, and without a circle of references."""
    waiting = {name: set(names_in(node)) for name, node in rules.items() if not _has_token(node)}
    found: set[str] = set()
    while more := {name for name, others in waiting.items() if others <= found}:
        found |= more
        waiting = {name: others for name, others in waiting.items() if name not in found}
    return found


def _has_token(node: Node) -> bool:
    return (isinstance(node, Text) and node.is_token) or any(map(_has_token, parts_of(node)))


def safe_terminals(rules: Rules, regular: set[str]) -> set[str]:
    """Returns those of the regular rules that a greedy lexer reads as they are meant."""
    sets = _Sets(rules)
    sets.settle()
    return {name for name in regular if not sets.continued(rules[name]) & sets.after[name]}


class _Sets:
    """Holds what each rule may begin with, and what may follow it. Sets may be too large, and never too small."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._first = dict.fromkeys(rules, 0)
        self._empty = dict.fromkeys(rules, False)
        self._continued: dict[str, int] = {}
        self.after = dict.fromkeys(rules, 0)

    def settle(self) -> None:
        """Finds the sets; each round adds what follows from the one before."""
        before = None
        while before != (before := (dict(self._first), dict(self._empty), dict(self.after))):
            for name, node in self._rules.items():
                self._first[name], self._empty[name] = self.first(node), self.is_empty(node)
                self._follow(node, self.after[name])

    def is_empty(self, node: Node) -> bool:
        """Returns whether a part may be empty."""
        match node:
            case Text(_, first, is_token):
                return not first and not is_token
            case Name(name):
                return self._empty[name]
            case Chain(parts):
                return all(map(self.is_empty, parts))
            case Choice(options):
                return any(map(self.is_empty, options))
            case Repeat(part, least):
                return least == 0 or self.is_empty(part)

    def first(self, node: Node) -> int:
        """Returns what a part may begin with."""
        match node:
            case Text(_, first):
                return first
            case Name(name):
                return self._first[name]
            case Chain(parts):
                return self._first_of(parts)
            case Choice(options):
                return _union(map(self.first, options))
            case Repeat(part):
                return self.first(part)

    def _first_of(self, parts: Sequence[Node]) -> int:
        found = 0
        for part in parts:
            found |= self.first(part)
            if not self.is_empty(part):
                break
        return found

    def _follow(self, node: Node, after: int) -> None:
        """Adds what may follow the rules in a part; `after` may follow the part itself."""
        if isinstance(node, Name):
            self.after[node.name] |= after
        elif isinstance(node, Chain):
            for part in reversed(node.parts):
                self._follow(part, after)
                after = self.first(part) | (after if self.is_empty(part) else 0)
        else:
            again = self.first(node) if isinstance(node, Repeat) and node.most != 1 else 0
            for part in parts_of(node):
                self._follow(part, after | again)

    def continued(self, node: Node) -> int:
        """Returns the characters that may come after a whole match of a part, and be part of a longer one."""
        match node:
            case Text():
                return 0
            case Name(name):
                if name not in self._continued:
                    self._continued[name] = self.continued(self._rules[name])
                return self._continued[name]
            case Chain(parts):
                return self._chain_continued(parts)
            case Choice(options):
                return self._choice_continued(options)
            case Repeat(part, _, most):
                inner, first = self.continued(part), self.first(part)
                return EVERY if most != 1 and inner & first else inner | first

    def _chain_continued(self, parts: Sequence[Node]) -> int:
        found = 0
        for index, part in enumerate(parts):
            rest = parts[index + 1 :]
            if self.continued(part) & self._first_of(rest):
                return EVERY  # Where the part ends is open, so anything may be part of it.
            if all(map(self.is_empty, rest)):
                found |= self.continued(part) | self._first_of(rest)
        return found

    def _choice_continued(self, options: Sequence[Node]) -> int:
        found = seen = 0
        for option in options:
            if seen & self.first(option):
                return EVERY  # One option may be the beginning of another.
            seen |= self.first(option)
            found |= self.continued(option)
        return found | (seen if any(map(self.is_empty, options)) else 0)


def _union(sets: Iterator[int]) -> int:
    found = 0
    for each in sets:
        found |= each
    return found
