# /// script
# dependencies = ["litellm", "mcp"]
# ///
"""Checks LiteLLM, on which proxies and many agent frameworks are built."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # LiteLLM reads it when it is imported, and does not fetch prices
import litellm  # noqa: E402
from report import API, KEY, LIMIT, MODEL, QUESTION, URL, run

CALL = {
    "model": f"openai/{MODEL}",
    "api_base": API,
    "api_key": KEY,
    "max_tokens": LIMIT,
    "messages": [{"role": "user", "content": QUESTION}],
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


def plain() -> None:
    answer = litellm.completion(**CALL)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= LIMIT


def streamed() -> None:
    chunks = list(litellm.completion(**CALL, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content and whole.usage.completion_tokens <= LIMIT


def messages() -> None:
    """LiteLLM's route to Anthropic's API, with more stop strings than OpenAI's takes."""
    call = CALL | {
        "model": f"anthropic/{MODEL}",
        "api_base": URL,
        "stop": [f"\nGuest {number}:" for number in range(20)],
    }
    answer = litellm.completion(**call)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= LIMIT
    whole = litellm.stream_chunk_builder(list(litellm.completion(**call, stream=True)))
    assert whole.choices[0].message.content


def text_completion() -> None:
    call = {key: value for key, value in CALL.items() if key != "messages"}
    assert litellm.text_completion(**call, prompt="An octavo is").choices[0].text


def tool() -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
    answer = litellm.completion(**CALL | {"max_tokens": 64}, tools=tools, tool_choice="required")
    call, *_ = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}


def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
    answer = litellm.completion(**CALL | {"max_tokens": 64}, response_format=form)
    assert json.loads(answer.choices[0].message.content).keys() == {"city"}


if __name__ == "__main__":
    run(plain, streamed, messages, text_completion, tool, structured)
