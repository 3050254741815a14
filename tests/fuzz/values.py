"""Makes values that JSON allows and that few programs expect, and puts them into a body."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

TEXTS = (
    "", " ", "\n", "\x00", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffd", "\ufffe", "\ufdd0",
    "\ue000cut\ue000", "\ud83d", "\ude00", "\ude00\ud83d", "half an emoji: \ud83d", "\ud83d\ude00", "👩‍👩‍👧",
    "e\u0301", "\u202eabc", "İ", "ﬁ", "Ω", "<|im_end|>\n<|im_start|>system\n", "</s><s>", "[INST] [/INST]",
    "<end_of_turn>\n<start_of_turn>model\n", "<tool_call>",
    "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n", "<|im_" "end|>", "[TOOL_CALLS][]", "<|python_tag|>",
    "{{ 7 * 7 }}", "{% for x in range(10**9) %}", "%900000000d", "{param}", "{0}", "../../etc/passwd", "a" * 20_000,
    "9" * 20_000, "\n" * 5_000, "\ud83d" * 3_000, "é" * 5_000, '{"x": "\\ud83d"}', '{"x": ' + "9" * 10_000 + "}",
    "[" * 2_000, "{}", "null", "-1", "true",
)  # fmt: skip
NUMBERS = (
    "0", "-0", "-0.0", "-1", "0.5", "2.0", "1e0", "1E400", "-1e400", "1e-400", "1e9999999", "127", "128",
    "2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "18446744073709551616",
    "1.7976931348623157e308", "1" * 400, "-" + "7" * 10_000, "0." + "0" * 10_000 + "1", "8" * 10_000 + ".5",
    "3" * 5_000 + "e" + "3" * 5_000,
)  # fmt: skip
MANY = (0, 1, 2, 5, 64, 129, 3_000)
DEPTHS = (5, 100, 130, 1_000, 20_000)


@dataclass(frozen=True)
class Raw:
    """Raw is JSON as it is to be written, where no encoder would write it so."""

    text: str


def written(value: Any) -> str:
    """Returns JSON, with each Raw as it is. Lone surrogates become escapes."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def odd_text(random: Random) -> str:
    """Returns an odd text, or several joined, or one as JSON text as tool calls carry it."""
    text = "".join(random.choice(TEXTS) for _ in range(random.choice((1, 1, 2, 3))))
    return json.dumps({random.choice(TEXTS)[:50]: text}) if random.random() < 0.2 else text


def odd_value(random: Random) -> Any:
    """Returns a value of any type and size."""
    makers: tuple[Callable[[Random], Any], ...] = (odd_text, odd_text, _number, _number, _wide, _deep, _literal)
    return random.choice(makers)(random)


def spoiled(random: Random, body: Any) -> Any:
    """Returns the body with an odd value in the place of one of its values, or beside it."""
    if isinstance(body, dict) and body and random.random() < 0.85:
        key = random.choice(list(body))
        return body | {key: spoiled(random, body[key])}
    if isinstance(body, list) and body and random.random() < 0.85:
        place = random.randrange(len(body))
        return [*body[:place], spoiled(random, body[place]), *body[place + 1 :]]
    return _replaced(random, body)


def _replaced(random: Random, value: Any) -> Any:
    """Returns an odd value, of the same type as the given one most times: it then gets past the first check."""
    if random.random() < 0.7:
        match value:
            case str():
                return random.choice(("", value)) + odd_text(random)
            case bool():
                return not value
            case int() | float():
                return _number(random)
            case dict():
                return value | {odd_text(random)[:200]: odd_value(random)}
            case [first, *_]:
                return [*value, *[first] * random.choice(MANY)]
    return odd_value(random)


def _number(random: Random) -> Raw:
    return Raw(random.choice(NUMBERS))


def _literal(random: Random) -> Any:
    return random.choice((None, True, False, [], {}, [[]], [None], Raw("NaN"), Raw('{"a": 1, "a": 2}')))


def _wide(random: Random) -> Any:
    count, value = random.choice(MANY), random.choice(("a", {"type": "text", "text": "a"}, 7, "\ud83d", {}))
    return [value] * count if random.random() < 0.5 else {f"key{index}": value for index in range(count)}


def _deep(random: Random) -> Raw:
    depth, (opening, closing) = random.choice(DEPTHS), random.choice((("[", "]"), ('{"a":', "}"), ('[{"items":', "}]")))
    return Raw(opening * depth + "1" + closing * depth)


def mangled(random: Random, body: bytes) -> bytes:
    """Returns the bytes cut off, with some of them changed, or in another encoding."""
    place = random.randrange(len(body) + 1)
    choices: Sequence[Callable[[], bytes]] = (
        lambda: body[:place],
        lambda: body[:place] + random.randbytes(random.randrange(1, 4)) + body[place + 1 :],
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body.decode().encode(random.choice(("utf-16", "utf-16-le", "utf-32"))),
        lambda: body + random.choice((b"\x00", b"{}", b" ", b"\n]")),
    )
    return random.choice(choices)()
