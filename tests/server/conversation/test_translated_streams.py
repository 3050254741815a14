"""Tests that /v1/responses and /v1/messages give the same answer streamed and whole, whatever a model writes."""

import random
from typing import Any

import pytest

from tests.server.anthropic.test_messages import joined
from tests.server.client import Client
from tests.server.conversation.test_tools import CALLS, TOOLS, roomy
from tests.server.fake import replay
from tests.server.openai.test_responses import last_response, same
from tests.server.text.test_reasoning_tags import OPENS
from tests.server.vocab import BYTES, EOS, byte_level, ids_of

TEXTS = ("", "héllo ", "🦑你", "\x85\u2028", CALLS, '<tool_call>{"name": "f"', "STOP", "ST", "</think>\n")


def answer(seed: int) -> list[int]:
    """Returns texts, lone bytes and calls in any order; the end token may be missing."""
    random_ = random.Random(seed)
    ids: list[int] = []
    for _ in range(random_.randrange(8)):
        ids += ids_of(random_.choice(TEXTS)) if random_.random() < 0.8 else [BYTES + random_.randrange(256)]
    return [*(ids or [BYTES]), *([EOS] if random_.random() < 0.7 else [])]


def without_ids(value: Any) -> Any:
    """Returns the value without ids, which are random; what they join is tested elsewhere."""
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items() if key not in ("id", "call_id")}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(60))
def test_streamed_or_whole(seed: int) -> None:
    client: Client = roomy(replay(answer(seed)), byte_level(OPENS) if seed % 3 == 0 else None)
    tools = [tool["function"] for tool in TOOLS] if seed % 2 else []
    asked: dict[str, Any] = {"tools": [{"type": "function"} | tool for tool in tools], "stop": ["STOP"]}
    whole = client.respond(**asked).json()
    assert without_ids(same(last_response(client.respond(**asked, stream=True)))) == without_ids(same(whole))
    uses = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in tools]
    parameters: dict[str, Any] = {"max_tokens": 900, "tools": uses, "stop_sequences": ["STOP"]}
    message = client.message(**parameters).json()
    assert without_ids(joined(client.message(**parameters, stream=True))) == without_ids(message)
    for kind, type, key in (("message", "text", "text"), ("reasoning", "thinking", "thinking")):
        texts = [item["content"][0]["text"] for item in whole["output"] if item["type"] == kind]
        assert [text for text in texts if text] == [block[key] for block in message["content"] if block["type"] == type]
