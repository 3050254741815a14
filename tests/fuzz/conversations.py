"""Makes conversations in any order of roles, in the forms of chat, of responses and of messages."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.values import odd_text

Json = dict[str, Any]
ROLES = ("user", "user", "assistant", "assistant", "system", "developer", "call", "call", "tool", "tool")
IDS = ("0", "call_1", "call_1", "abcdefghi", "toolu_01A09q90qw90lq917835lq9", "c" * 100, "é")
ARGUMENTS = ("{}", "", "null", '{"x": 1}', '{"x": "\\ud83d"}', "[1]", "not JSON", '{"x": ' + "7" * 5000 + "}")
TOOLS = ("f", "get_weather", "n" * 64)
PARAMETERS: Json = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def chat(random: Random) -> list[Json]:
    """Returns messages for /v1/chat/completions."""
    return [_message(random, role) for role in _roles(random)]


def items(random: Random) -> list[Json]:
    """Returns items for /v1/responses."""
    return [_item(random, role) for role in _roles(random)]


def blocks(random: Random) -> list[Json]:
    """Returns messages for /v1/messages."""
    return [_turn(random, role) for role in _roles(random)]


def chat_tools(random: Random) -> list[Json]:
    return [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in _some(random)]


def response_tools(random: Random) -> list[Json]:
    return [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in _some(random)]


def message_tools(random: Random) -> list[Json]:
    return [{"name": name, "input_schema": PARAMETERS} for name in _some(random)]


def _some(random: Random) -> list[str]:
    return random.sample(TOOLS, random.randint(1, len(TOOLS)))


def _roles(random: Random) -> list[str]:
    return [random.choice(ROLES) for _ in range(random.choice((1, 1, 2, 3, 4, 6, 9)))]


def _text(random: Random) -> str:
    usual = ("Hello", "What is an octavo?", "20 degrees", " a ")
    return random.choice(usual) if random.random() < 0.9 else odd_text(random)[:2000]


def _message(random: Random, role: str) -> Json:
    if role == "tool":
        return {"role": "tool", "tool_call_id": random.choice(IDS), "content": _content(random, "text")}
    if role == "call":
        calls = [_called(random) for _ in range(random.choice((1, 1, 2, 3)))]
        return {"role": "assistant", "content": random.choice((None, "", _text(random))), "tool_calls": calls}
    content = None if role == "assistant" and random.random() < 0.1 else _content(random, "text")
    return {"role": role, "content": content} | ({"name": "ann"} if random.random() < 0.1 else {})


def _called(random: Random) -> Json:
    function = {"name": random.choice(TOOLS), "arguments": random.choice((*ARGUMENTS, None))}
    return {"id": random.choice(IDS), "type": "function", "function": function}


def _content(random: Random, kind: str) -> str | list[Json]:
    text = _text(random)
    return text if random.random() < 0.7 else [{"type": kind, "text": text}] * random.choice((0, 1, 2))


def _item(random: Random, role: str) -> Json:
    id, name = random.choice(IDS), random.choice(TOOLS)
    if role == "tool":
        return {"type": "function_call_output", "call_id": id, "output": _text(random)}
    if role == "call":
        return {"type": "function_call", "call_id": id, "name": name, "arguments": random.choice(ARGUMENTS)}
    kind = "output_text" if role == "assistant" else "input_text"
    return {"role": role, "content": _content(random, kind)}


def _turn(random: Random, role: str) -> Json:
    id = random.choice(IDS)
    if role == "tool":
        block = {"type": "tool_result", "tool_use_id": id, "content": _content(random, "text")}
        return {"role": "user", "content": [block] * random.choice((1, 1, 2))}
    if role == "call":
        block = {"type": "tool_use", "id": id, "name": random.choice(TOOLS), "input": _input(random)}
        return {"role": "assistant", "content": [block]}
    return {"role": "user" if role == "developer" else role, "content": _content(random, "text")}


def _input(random: Random) -> Any:
    read: Callable[[str], Any] = json.loads
    return random.choice(({}, None, {"x": 1}, read('{"x": "\\ud83d"}')))
